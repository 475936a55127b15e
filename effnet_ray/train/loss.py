"""Losses of single images: cross-entropy, or binary cross-entropy for several labels.

`train.step` takes gradients of `TrainLoss`. Reported losses are sums of `losses`, without
smoothing, mixing or class weights, in `train.metrics`. For evaluations of a release,
`inference.multiclass` and `inference.multilabel` compute them with NumPy. A new loss is a field of
the Recipe that `TrainLoss` reads; `head_solver` minimises it too, and expects it convex.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.recipe import Recipe
from effnet_ray.train.mixup import MixedImages


def losses(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of each image [B] in nats, from logits [B, K].

    Cross-entropy for labels [B]. For labels [B, K] of 0 and 1, binary cross-entropy averaged over
    the classes; `smoothing` is then spread as in timm's `BinaryCrossEntropy`.
    """
    if label.ndim == 1:
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    target = label.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


@dataclass(frozen=True, slots=True)
class TrainLoss:
    """The loss that a recipe trains with."""

    smoothing: float
    class_weights: Tensor | None
    """[K]: factor on the loss of each class's images; None: all count alike."""

    @classmethod
    def of(
        cls, recipe: Recipe, class_weights: Sequence[float], device: torch.device | None = None
    ) -> Self:
        """The recipe's loss; `class_weights` are those of the data set, empty for none."""
        weights = torch.tensor(class_weights, device=device) if class_weights else None
        return cls(recipe.label_smoothing, weights)

    def __call__(self, logits: Tensor, label: Tensor, mixed: MixedImages) -> Tensor:
        """Loss of each image [B] for the gradient, from logits [B, K].

        A mixed image has the weighted mean of the losses for its label and its mixed-in label.
        """
        if mixed.mixed_label is None:
            return self._weighted(logits, label)
        share = mixed.label_share
        mixed_in = self._weighted(logits, mixed.mixed_label)
        return share * self._weighted(logits, label) + (1 - share) * mixed_in

    def _weighted(self, logits: Tensor, label: Tensor) -> Tensor:
        values = losses(logits, label, self.smoothing)
        return values if self.class_weights is None else values * self.class_weights[label]
