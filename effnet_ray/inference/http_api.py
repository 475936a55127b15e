"""The HTTP answers of a served release, without Ray Serve."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from effnet_ray.data.views import write_eval_view
from effnet_ray.errors import EvaluationError, ImageError, InputError
from effnet_ray.inference.onnx_outputs import OnnxOutputs, is_installed
from effnet_ray.inference.scorer import Scorer, top_k
from effnet_ray.runtime.inference_actors import MachineShare

Answer = dict[str, Any] | EvaluationError | ImageError
"""JSON of the answer, or why there is none."""


class ServedRelease:
    """A release on the replica's device."""

    def __init__(self, uri: str, top: int, runtime: str = "torch") -> None:
        """Load and verify the release; raises what `load_release` raises.

        `runtime`: as in `ServeOptions`.
        """
        self._scorer = Scorer(uri, None, MachineShare(cores=1))  # a replica has one core
        self.release = self._scorer.release
        self.top = min(top, self._scorer.classes)
        self._onnx = self._onnx_outputs(runtime)

    def _onnx_outputs(self, runtime: str) -> OnnxOutputs | None:
        """ONNX Runtime's, if that computes. Raises InputError if it must and cannot."""
        if runtime == "torch" or not self._scorer.on_cpu:
            return None
        if runtime == "onnx":
            return OnnxOutputs(self.release)
        if not is_installed() or self.release.recipe.precision not in (None, "float32"):
            return None
        try:
            return OnnxOutputs(self.release)
        except InputError as error:
            logging.getLogger("ray.serve").warning("torch computes, not ONNX Runtime: %s", error)
            return None

    def _outputs(self, views: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        """Logits [B, K] of views [B, R, R, 3], and how unlike the release's images each is."""
        if self._onnx:
            return self._onnx(views)
        features, logits = self._scorer.features_and_logits(views)
        return logits, self._scorer.unknown(features)

    @property
    def description(self) -> dict[str, Any]:
        """JSON of `GET /`."""
        return {
            "model": self.release.reference,
            "release_uri": self.release.uri,
            "task": self.release.recipe.task,
            "classes": list(self.release.classes),
        }

    def predict(self, images: Sequence[bytes], with_map: Sequence[bool] = ()) -> list[Answer]:
        """The answer for each image; with its activation map where `with_map`, by default none.

        ImageError for an image that cannot be read, EvaluationError if its logits are not finite.
        """
        size = self.release.spec.resolution
        views = np.zeros((len(images), size, size, 3), np.uint8)
        errors = [
            write_eval_view(data, self.release.spec, view)[1]
            for data, view in zip(images, views, strict=True)
        ]
        readable = np.array([not error for error in errors])
        mapped = np.array(with_map or [False] * len(images))[readable]
        predictions = iter(self._predict_views(views[readable], mapped) if readable.any() else ())
        return [ImageError(error) if error else next(predictions) for error in errors]

    def _predict_views(
        self, views: npt.NDArray[np.uint8], with_map: npt.NDArray[np.bool_]
    ) -> list[Answer]:
        logits, unknown = self._outputs(views)
        probability = self._scorer.probabilities(logits)
        classes, values = top_k(probability, self.top)
        multilabel = self._scorer.multilabel
        predicted = self._scorer.predicted(probability) if multilabel else [None] * len(views)
        finite = logits.isfinite().all(1)
        not_finite = EvaluationError(
            f"{self.release.reference} returns NaN or infinite logits for this image: "
            "serve another release"
        )
        answers: list[Answer] = [
            self._answer(*row) if is_finite else not_finite
            for *row, is_finite in zip(
                classes.tolist(),
                values.tolist(),
                predicted,
                [None] * len(views) if unknown is None else unknown.tolist(),
                finite.tolist(),
                strict=True,
            )
        ]
        rows = np.flatnonzero(with_map & finite.cpu().numpy())
        maps = self._scorer.maps(views[rows], classes[rows, 0].tolist())
        for row, picture in zip(rows, maps, strict=True):
            answer = answers[row]
            assert isinstance(answer, dict)  # its logits are finite
            answer["map"] = f"data:image/jpeg;base64,{picture}"
        return answers

    def _answer(
        self,
        classes: Sequence[int],
        probabilities: Sequence[float],
        predicted: Sequence[int] | None,
        unknown: float | None,
    ) -> dict[str, Any]:
        names = self.release.classes
        labels = [
            {"label": names[index], "probability": probability}
            for index, probability in zip(classes, probabilities, strict=True)
        ]
        answer = {"model": self.release.reference, "label": labels[0]["label"], "labels": labels}
        if predicted is not None:
            answer["predicted"] = [names[index] for index in predicted]
        if unknown is not None:
            answer |= {"unknown": unknown, "is_unknown": self._scorer.is_unknown(unknown)}
        return answer
