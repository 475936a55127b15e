"""A release's network in an actor, on its share of a machine."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effnet_ray.errors import ReleaseError
from effnet_ray.inference.logits import probabilities
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import load_release
from effnet_ray.runtime.inference_actors import MachineShare


def top_k(logits: Tensor, *, multilabel: bool, k: int) -> tuple[Tensor, Tensor]:
    """The `k` most probable classes and their probabilities, [B, k] each, of logits [B, K].

    The most probable class comes first; of equal ones the lower.
    """
    ordered = probabilities(logits, multilabel=multilabel).sort(
        dim=1, descending=True, stable=True
    )
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
        self._precision = getattr(torch, self.release.recipe.precision or "float32")
        self.classes = len(self.release.classes)
        self.multilabel = self.release.recipe.task == MULTILABEL

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
