"""A release's network in an actor, on a worker's share of a machine."""

from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

from effnet_ray.tasks import MULTILABEL
from effnet_ray.train.actors import my_device
from effnet_ray.use.opened import Opened


class Sight:
    """What the network makes of views."""

    def __init__(self, release: Any, neighbours: int) -> None:
        """`release`: an Opened, or Ray's reference to one; `neighbours`: actors of a machine."""
        opened: Opened = ray.get(release) if isinstance(release, ray.ObjectRef) else release
        self._device = my_device(neighbours)
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
