"""The metrics of one epoch, and which epoch of a run is best. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train.metric_definitions import EVAL_TOP1, EvalValues, Metric, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport(EvalValues):
    """Metrics of one epoch: means over all its images, whichever worker used them.

    Field names are keys of checkpoint.json and metrics.json.
    """

    epoch: int
    """Index of the epoch, from 0."""
    step: int
    """Optimizer steps since the start of the run."""
    train_loss: float
    """Mean training loss, nats, over readable images."""
    train_top1: float
    """Share of train images whose highest score is for one of their labels, 0 to 1."""
    train_images: int
    """Train images of the epoch, including unreadable ones."""
    eval_images: int
    """Eval images, including unreadable ones; 0 if the epoch was not evaluated."""
    quarantined: int
    """Train and eval images of this epoch that could not be read."""
    skipped: int = 0
    """Steps of this epoch without an update, because loss or gradient was not finite."""
    averaged: bool = False
    """Whether the eval metrics are those of the averaged weights (EMA), which scored higher; a
    release of this epoch contains them."""

    @property
    def ranking_metric(self) -> Metric:
        """The metric that epochs are compared by."""
        score = Score.of(asdict(self))
        return score.metric if score else EVAL_TOP1

    @property
    def score(self) -> float | None:
        """The value of `ranking_metric`; None if the epoch was not evaluated."""
        score = Score.of(asdict(self))
        return score.value if score else None


def best(history: Sequence[EpochReport]) -> EpochReport | None:
    """The evaluated epoch with the highest score, then the lowest eval loss, then the earliest.

    A NaN loss counts as infinite.
    """

    def sort_key(epoch: EpochReport) -> tuple[float, float, int]:
        loss, score = epoch.eval_loss, epoch.score
        assert loss is not None and score is not None
        return -score, math.inf if math.isnan(loss) else loss, epoch.epoch

    return min(_evaluated(history), key=sort_key, default=None)


def _evaluated(history: Sequence[EpochReport]) -> list[EpochReport]:
    return [report for report in history if report.eval_loss is not None]


def ended_early(history: Sequence[EpochReport], recipe: Recipe) -> bool:
    """Whether early stopping applies: `patience` evaluations of the last phase without a new best.

    Evaluations of earlier phases do not count.
    """
    best_epoch = best(history)
    if not recipe.patience or best_epoch is None:
        return False
    since = max(best_epoch.epoch, phases(recipe)[-1].first - 1)
    return sum(report.epoch > since for report in _evaluated(history)) >= recipe.patience
