"""What is answered over HTTP, and how it is served. Knows nothing of Ray Serve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import EvaluationError, ImageError
from effnet_ray.inference.scorer import Scorer, top_k
from effnet_ray.runtime.inference_actors import MachineShare

Pixels = npt.NDArray[np.uint8]
Answer = dict[str, Any] | EvaluationError


class ServedRelease:
    """A release on the replica's device."""

    def __init__(self, uri: str, top: int) -> None:
        """Load and verify it. Raises as `open_release` does."""
        self._sight = Scorer(uri, None, MachineShare(cores=1))  # what a replica leases
        self.release = self._sight.release
        self.top = min(top, self._sight.classes)

    @property
    def told(self) -> dict[str, Any]:
        """What is served."""
        release = self.release
        return {"model": release.reference, "release_uri": release.uri,
                "task": release.recipe.task, "classes": list(release.classes)}  # fmt: skip

    def look(self, images: Sequence[bytes]) -> list[Answer | ImageError]:
        """What each shows, or why it cannot be read; EvaluationError where that is no number."""
        views = [self._view(data) for data in images]
        good = [view for view in views if not isinstance(view, ImageError)]
        said = iter(self._said(np.stack(good)) if good else ())
        return [view if isinstance(view, ImageError) else next(said) for view in views]

    def _view(self, data: bytes) -> Pixels | ImageError:
        try:
            return eval_view(decode(data), self.release.spec)
        except ImageError as error:
            return error

    def _said(self, views: Pixels) -> list[Answer]:
        _, logits = self._sight.features_and_logits(views)
        labels, shares = top_k(logits, several=self._sight.several, top=self.top)
        finite = logits.isfinite().all(1)
        wrong = EvaluationError(
            f"what {self.release.reference} makes of this image is no finite number: serve "
            "another release"
        )
        rows = zip(labels.tolist(), shares.tolist(), strict=True)
        return [
            self._answer(*row) if fine else wrong
            for row, fine in zip(rows, finite.tolist(), strict=True)
        ]

    def _answer(self, labels: Sequence[int], shares: Sequence[float]) -> dict[str, Any]:
        named = [
            {"label": self.release.classes[label], "probability": share}
            for label, share in zip(labels, shares, strict=True)
        ]
        return {"model": self.release.reference, "label": named[0]["label"], "labels": named}
