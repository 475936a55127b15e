"""What trackers record of a run: its parameters, and its metrics by optimizer step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import EpochDone, Event, StepDone
from effnet_ray.train.metric_definitions import EPOCH_METRICS
from effnet_ray.train.run_record import Run

EPOCH = "epoch"
"""Present in every point of a finished epoch: the number of the epoch, from 1."""
RUNNING_LOSS = "loss"
"""Present in every point within an epoch: the mean training loss of the epoch so far."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """Metrics at an optimizer step. The first one is EPOCH or RUNNING_LOSS."""

    step: int
    metrics: Mapping[str, float]
    time_s: float = field(default_factory=time.time)
    """Seconds since 1970."""

    @property
    def ends_epoch(self) -> bool:
        """Whether these are the metrics of a finished epoch."""
        return EPOCH in self.metrics


@dataclass(slots=True)
class Logged:
    """The points that a tracker has. A restarted run repeats steps: the first values are kept."""

    epochs: set[int] = field(default_factory=set)
    """Steps at which epochs ended."""
    step: int = -1
    """Last step of the points within epochs."""

    def select_new(self, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        """Return the points that the tracker lacks, and count them as logged."""
        return [point for point in points if self._add(point)]

    def _add(self, point: MetricPoint) -> bool:
        if point.ends_epoch:
            new = point.step not in self.epochs
            self.epochs.add(point.step)
            return new
        new = point.step > self.step
        self.step = max(self.step, point.step)
        return new


def point_of_event(event: Event) -> MetricPoint | None:
    """The metrics of an event; None if it has none."""
    match event:
        case StepDone():
            metrics = {RUNNING_LOSS: event.loss, "images_per_s": event.images_per_s}
            return MetricPoint(event.step, metrics)
        case EpochDone():
            point = point_of_epoch(event.report)
            metrics = {**point.metrics, "epoch_images_per_s": event.images_per_s}
            return MetricPoint(point.step, metrics)
    return None


def point_of_epoch(report: EpochReport) -> MetricPoint:
    """The metrics of an epoch; without the eval metrics if it was not evaluated."""
    values = {metric.key: getattr(report, metric.key) for metric in EPOCH_METRICS}
    metrics = {name: float(value) for name, value in values.items() if value is not None}
    return MetricPoint(report.step, {EPOCH: report.epoch + 1, **metrics})


def params(run: Run) -> dict[str, bool | int | float | str]:
    """The parameters of a run: its resolved recipe, data and initial weights."""
    values = {
        **asdict(run.recipe),
        "data": run.data,
        "fingerprint": run.fingerprint,
        "weights": run.weights,
    }
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in values.items()
    }
