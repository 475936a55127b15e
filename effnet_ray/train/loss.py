"""Losses of single images: cross-entropy, or binary cross-entropy for several labels.

`train.step` takes gradients of `train_losses`. Reported losses are sums of `losses`, without
smoothing, mixing or class weights, in `train.metrics`. For evaluations of a release,
`inference.multiclass` and `inference.multilabel` compute them with NumPy. A new loss is a field of
the Recipe and a case of `train_losses`; `head_solver` minimises it too, and expects it convex.
"""

import torch.nn.functional as F
from torch import Tensor

from effnet_ray.train.mixup import MixedLane


def losses(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of each image [B] in nats, from logits [B, K].

    Cross-entropy for labels [B]. For labels [B, K] of 0 and 1, binary cross-entropy averaged over
    the classes; `smoothing` is then spread as in timm's `BinaryCrossEntropy`.
    """
    if label.ndim == 1:
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    target = label.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def train_losses(
    logits: Tensor,
    label: Tensor,
    mixed: MixedLane,
    *,
    smoothing: float,
    class_weights: Tensor | None,
) -> Tensor:
    """Loss of each image [B] for the gradient, class-weighted.

    A mixed image has the weighted mean of the losses for its label and its mixed-in label.
    """

    def weighted(target: Tensor) -> Tensor:
        values = losses(logits, target, smoothing)
        return values if class_weights is None else values * class_weights[target]

    if mixed.mixed_label is None:
        return weighted(label)
    share = mixed.label_share
    return share * weighted(label) + (1 - share) * weighted(mixed.mixed_label)
