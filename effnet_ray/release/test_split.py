"""The test split, scored once: by what is about to be released, after every choice was made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.placement import Placement
from effnet_ray.store import publishing
from effnet_ray.use.evaluate import evaluate
from effnet_ray.use.opened import open_release
from effnet_ray.use.several import Several

TEST = "test"
CANDIDATE = "candidate"
"""Folder of a run: its release before it is one. Actors read it from there."""


@dataclass(frozen=True)
class Scoring:
    """Who scores, and by which data."""

    data: str
    """URI of the data set that the run was trained on."""
    placement: Placement
    connect: Callable[[Placement], object]
    """Joins or starts Ray, where it must."""
    tell: Callable[[int, int], None] = lambda done, images: None
    """Hears how many images are done, of how many."""

    def __call__(
        self, run_uri: str, files: Mapping[str, bytes], told: Mapping[str, Any], limit: int | None
    ) -> dict[str, float]:
        """`test_top1`, `test_top5`, `test_loss` and `test_images` of what these files release.

        And `test_map` where images may have several classes; nothing where the data has no such
        images. Raises InputError, EvaluationError.
        """
        if not manifests.load(self.data).images.get(TEST):
            return {}
        candidate = storage.join(run_uri, CANDIDATE)
        publishing.lay_out(candidate, files, told)
        try:
            figures = evaluate(
                open_release(candidate, ""),
                self.data,
                self.placement,
                split=TEST,
                limit=limit,
                tell=self.tell,
                connect=self.connect,
            ).figures
        finally:
            storage.delete(candidate)
        return {
            "test_top1": figures.top1,
            "test_top5": figures.top5,
            "test_loss": figures.loss,
            "test_images": figures.images,
            **({"test_map": figures.mean_ap} if isinstance(figures, Several) else {}),
        }
