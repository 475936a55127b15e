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
    eval_loss: float | None
    """None where the epoch was not evaluated, as are the next two (`Recipe.eval_every`)."""
    eval_top1: float | None
    eval_top5: float | None
    eval_images: int
    quarantined: int
    """Images of this epoch, train and eval, that could not be read."""
    skipped: int = 0
    """Steps of this epoch that were not taken, their loss or gradient being no finite number."""
    averaged: bool = False
    """Whether the eval figures are those of the averaged weights (EMA), which were better; a
    release of this epoch has them."""
    eval_map: float | None = None
    """Mean average precision, 0 to 1, where images may have several classes."""

    @property
    def score(self) -> float | None:
        """What epochs are judged by."""
        return self.eval_top1 if self.eval_map is None else self.eval_map


def best(history: Sequence[EpochReport]) -> EpochReport | None:
    """The epoch to release: highest score, then lowest eval loss, then the earliest.

    Of those that were evaluated. A loss that is no number counts as the highest.
    """

    def order(epoch: EpochReport) -> tuple[float, float, int]:
        loss, score = epoch.eval_loss, epoch.score
        assert loss is not None and score is not None
        return -score, math.inf if math.isnan(loss) else loss, epoch.epoch

    return min(_evaluated(history), key=order, default=None)


def _evaluated(history: Sequence[EpochReport]) -> list[EpochReport]:
    return [report for report in history if report.eval_loss is not None]


def ended_early(history: Sequence[EpochReport], recipe: Recipe) -> bool:
    """Whether the last `patience` evaluations brought no better one, all in the last phase."""
    winner = best(history)
    if not recipe.patience or winner is None:
        return False
    since = max(winner.epoch, phases(recipe)[-1].first - 1)
    return sum(report.epoch > since for report in _evaluated(history)) >= recipe.patience
