"""What an epoch says to the world. Without torch: drivers and actors that carry it stay light."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What one epoch says to the world; means over all images of the epoch and all workers."""

    epoch: int
    """From 0."""
    step: int
    """Optimizer steps taken so far, over the whole run."""
    train_loss: float
    train_top1: float
    train_images: int
    eval_loss: float
    eval_top1: float
    eval_top5: float
    eval_images: int
    quarantined: int
    """Images of this epoch, train and eval, that could not be read."""


def best(history: list[EpochReport]) -> EpochReport | None:
    """The epoch to release: highest eval top-1, then lowest eval loss, then the earliest.

    A loss that is no number counts as the highest.
    """

    def order(epoch: EpochReport) -> tuple[float, float, int]:
        loss = math.inf if math.isnan(epoch.eval_loss) else epoch.eval_loss
        return -epoch.eval_top1, loss, epoch.epoch

    return min(history, key=order, default=None)
