"""A release's network in an actor, on a worker's share of a machine."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effnet_ray.errors import ReleaseError
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import load_release
from effnet_ray.runtime.inference_actors import MachineShare


def top_k(logits: Tensor, *, several: bool, top: int) -> tuple[Tensor, Tensor]:
    """Classes and their probabilities, [B, top] each, the likeliest first, of logits [B, K].

    `several`: an image may have any number of classes, each with a probability by itself.
    """
    share = logits.sigmoid() if several else logits.softmax(1)
    order = share.sort(dim=1, descending=True, stable=True)
    return order.indices[:, :top], order.values[:, :top]


class Scorer:
    """What the network makes of views."""

    def __init__(self, release: str, sha256: str | None, share: MachineShare) -> None:
        """`release`: URI of the release whose weights have that digest; None: whichever is there.

        Raises ReleaseError where another is there.
        """
        opened = load_release(release, "")
        if sha256 not in (None, opened.sha256):
            raise ReleaseError(f"{release} has other weights than before: use another version")
        self.release = opened
        self._device = share.device()
        self._network = opened.network.to(self._device).eval()
        self._precision = getattr(torch, opened.recipe.precision or "float32")
        self.classes = len(opened.classes)
        self.several = opened.recipe.task == MULTILABEL
        """Whether an image may have several classes."""

    @torch.no_grad()
    def features_and_logits(self, views: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """[B, F] and [B, K] of views [B, R, R, 3], as in training's evaluation; logits float32."""
        pixels = torch.from_numpy(np.asarray(views)).permute(0, 3, 1, 2).to(self._device)
        half = self._precision != torch.float32
        with torch.autocast(self._device.type, self._precision if half else None, half):
            features = self._network.features(pixels)
            logits = self._network.backbone.classifier(features)
        return features, logits.float()
