"""Losses of single images: cross-entropy, or binary cross-entropy for several labels.

`train.step` takes gradients of `TrainLoss`. Reported losses are sums of `losses`, without
smoothing, mixing, class weights or teacher, in `train.metrics`. For evaluations of a release,
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
from effnet_ray.train.batch import Target
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


def teacher_losses(
    logits: Tensor, teacher: Tensor, temperature: float, *, multilabel: bool
) -> Tensor:
    """Loss of each image [B] in nats, from logits [B, K], for a teacher's logits [B, K].

    The cross-entropy with the teacher's probabilities, both at a temperature above 0; binary
    cross-entropy averaged over the classes for several labels. Its square as a factor keeps
    gradients of one size (Hinton et al. 2015, arXiv 1503.02531, section 2.1).
    """
    logits, teacher = logits / temperature, teacher / temperature
    if multilabel:
        target = teacher.sigmoid()
        values = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    else:
        values = F.cross_entropy(logits, teacher.softmax(1), reduction="none")
    return values * temperature**2


@dataclass(frozen=True, slots=True)
class TrainLoss:
    """The loss that a recipe trains with."""

    smoothing: float
    class_weights: Tensor | None
    """[K]: factor on the loss of each class's images; None: all count alike."""
    teacher_weight: float = 0.0
    """0 to 1: weight of the teacher's loss; that of the label's has the rest."""
    teacher_temperature: float = 1.0

    @classmethod
    def of(
        cls, recipe: Recipe, class_weights: Sequence[float], device: torch.device | None = None
    ) -> Self:
        """The recipe's loss; `class_weights` are those of the data set, empty for none."""
        weights = torch.tensor(class_weights, device=device) if class_weights else None
        return cls(
            recipe.label_smoothing, weights, recipe.teacher_weight, recipe.teacher_temperature
        )

    def __call__(self, logits: Tensor, target: Target, mixed: MixedImages) -> Tensor:
        """Loss of each image [B] for the gradient, from logits [B, K].

        A mixed image has the weighted mean of the losses for its target and its mixed-in target.
        """
        values = self._of_target(logits, target)
        if mixed.mixed_in is None:
            return values
        share = mixed.label_share
        return share * values + (1 - share) * self._of_target(logits, mixed.mixed_in)

    def _of_target(self, logits: Tensor, target: Target) -> Tensor:
        """The label's loss and, of images that the teacher could read, the teacher's."""
        values = losses(logits, target.label, self.smoothing)
        if target.teacher is not None:
            values = self._with_teacher(values, logits, target, target.teacher)
        return values if self.class_weights is None else values * self.class_weights[target.label]

    def _with_teacher(
        self, values: Tensor, logits: Tensor, target: Target, teacher: Tensor
    ) -> Tensor:
        """The labels' losses `values` [B], and the teacher's by their weights."""
        known, multilabel = teacher.isfinite().all(1), target.label.ndim == 2
        taught = teacher_losses(
            logits,
            teacher.float().nan_to_num(),
            self.teacher_temperature,
            multilabel=multilabel,
        )
        weight = self.teacher_weight * known
        return (1 - weight) * values + weight * taught
