"""What an epoch says to the world. Without torch: drivers and actors that carry it stay light."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe


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
    skipped: int = 0
    """Steps of this epoch that were not taken, their loss or gradient being no finite number."""
    averaged: bool = False
    """Whether the eval figures are those of the averaged weights (EMA), which were better; a
    release of this epoch has them."""


def best(history: Sequence[EpochReport]) -> EpochReport | None:
    """The epoch to release: highest eval top-1, then lowest eval loss, then the earliest.

    A loss that is no number counts as the highest.
    """

    def order(epoch: EpochReport) -> tuple[float, float, int]:
        loss = math.inf if math.isnan(epoch.eval_loss) else epoch.eval_loss
        return -epoch.eval_top1, loss, epoch.epoch

    return min(history, key=order, default=None)


def ended_early(history: Sequence[EpochReport], recipe: Recipe) -> bool:
    """Whether the last `patience` epochs brought no better one, all in the last phase."""
    winner = best(history)
    if not recipe.patience or winner is None:
        return False
    since = max(winner.epoch, phases(recipe)[-1].first - 1)
    return history[-1].epoch - since >= recipe.patience
