"""A release's network in an actor, on its share of a machine."""

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effnet_ray.data.decode import encode_jpeg
from effnet_ray.errors import ReleaseError
from effnet_ray.inference.activation_maps import class_maps, overlay
from effnet_ray.inference.logits import probabilities
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import load_release
from effnet_ray.release_format.calibration import THRESHOLD
from effnet_ray.runtime.inference_actors import MachineShare

MAP_PX = 128
"""Longer side of a picture with an activation map: that of a thumbnail."""


def top_k(probability: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` most probable classes and their probabilities, [B, k] each, of [B, K].

    The most probable class comes first; of equal ones the lower.
    """
    ordered = probability.sort(dim=1, descending=True, stable=True)
    return ordered.indices[:, :k], ordered.values[:, :k]


class Scorer:
    """Computes features and logits of preprocessed images."""

    def __init__(self, uri: str, sha256: str | None, share: MachineShare) -> None:
        """Load the release at `uri`.

        Raises ReleaseError if its weights do not have the digest `sha256`; None accepts any.
        """
        self.release = load_release(uri, "")
        if sha256 not in (None, self.release.sha256):
            raise ReleaseError(
                f"the weights of {uri} have changed since this job started: use another version"
            )
        self._device = share.device()
        self._network = self.release.network.to(self._device).eval()
        references = self.release.references
        self._references = references.to(self._device) if references else None
        self._precision = getattr(torch, self.release.recipe.precision or "float32")
        self.classes = len(self.release.classes)
        self.multilabel = self.release.recipe.task == MULTILABEL

    @property
    def on_cpu(self) -> bool:
        """Whether the network computes on a CPU."""
        return self._device.type == "cpu"

    @torch.no_grad()
    def features_and_logits(self, views: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Features [B, F] and float32 logits [B, K] of views [B, R, R, 3].

        In the precision of the recipe, as training's evaluation computes them.
        """
        pixels = torch.from_numpy(np.asarray(views)).permute(0, 3, 1, 2).to(self._device)
        mixed = self._precision != torch.float32
        with torch.autocast(self._device.type, self._precision if mixed else None, mixed):
            features = self._network.features(pixels)
            logits = self._network.backbone.classifier(features)
        return features, logits.float()

    def maps(self, views: npt.NDArray[np.uint8], classes: Sequence[int]) -> list[str]:
        """Views [B, R, R, 3] with the activation map of one class each, as JPEGs in base64."""
        if not len(classes):
            return []
        maps = class_maps(self._network, views, torch.tensor(classes))
        pictures = map(overlay, views, maps)
        return [base64.b64encode(encode_jpeg(picture, MAP_PX)).decode() for picture in pictures]

    def unknown(self, features: Tensor, image_ids: Sequence[int] | None = None) -> Tensor | None:
        """How unlike the release's images others with features [B, F] are: [B], high is unlike.

        None if the release has no references. `image_ids` as in `References.scores`.
        """
        if self._references is None:
            return None
        ids = None if image_ids is None else torch.tensor(image_ids, device=self._device)
        return self._references.scores(features, ids).cpu()

    def is_unknown(self, score: float) -> bool:
        """Whether a picture with this score is called unknown."""
        return self._references is not None and score > self._references.threshold

    def probabilities(self, logits: Tensor) -> Tensor:
        """The release's calibrated probabilities, [B, K] float64, of logits [B, K]."""
        return probabilities(logits.double(), self.release.calibration, multilabel=self.multilabel)

    def predicted(self, probability: Tensor) -> list[list[int]]:
        """The classes whose probability, [B, K], reaches their threshold; the most probable first.

        Of images with any number of classes.
        """
        thresholds = probability.new_tensor(self.release.calibration.thresholds or THRESHOLD)
        ordered, values = top_k(probability, self.classes)
        reached = values >= thresholds.expand(self.classes)[ordered]
        return [
            [index for index, is_reached in zip(*row, strict=True) if is_reached]
            for row in zip(ordered.tolist(), reached.tolist(), strict=True)
        ]
