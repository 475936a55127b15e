"""What a tracker is told of a run: its settings, and figures by optimizer step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import EpochDone, Event, StepDone
from effnet_ray.train.run_record import Run

EPOCH, STEP = "epoch", "loss"
"""The first of an epoch's figures, and of any other point's."""
OF_EPOCH = (
    "train_loss", "train_top1", "eval_loss", "eval_top1", "eval_top5", "eval_map", "skipped",
    "quarantined",
)  # fmt: skip
"""Fields of EpochReport."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """Figures at an optimizer step."""

    step: int
    figures: Mapping[str, float]
    when: float = field(default_factory=time.time)
    """Seconds since 1970."""

    @property
    def ends_epoch(self) -> bool:
        """Whether the figures are an epoch's."""
        return EPOCH in self.figures


@dataclass(slots=True)
class Logged:
    """What a tracker has: of a step that is told twice, after a restart, the first stands."""

    epochs: set[int] = field(default_factory=set)
    """Steps at which it has an epoch's figures."""
    step: int = -1
    """Up to which it has the others."""

    def fresh(self, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        """Those that it has not; it has them from now on."""
        return [point for point in points if self._takes(point)]

    def _takes(self, point: MetricPoint) -> bool:
        if point.ends_epoch:
            new = point.step not in self.epochs
            self.epochs.add(point.step)
            return new
        new = point.step > self.step
        self.step = max(self.step, point.step)
        return new


def point_of_event(event: Event) -> MetricPoint | None:
    """The figures of an event; None where it has none."""
    match event:
        case StepDone():
            return MetricPoint(event.step, {STEP: event.loss, "images_per_s": event.images_per_s})
        case EpochDone():
            told = point_of_epoch(event.report)
            return MetricPoint(
                told.step, {**told.figures, "epoch_images_per_s": event.images_per_s}
            )
    return None


def point_of_epoch(report: EpochReport) -> MetricPoint:
    """The figures of an epoch; without `eval_` where it was not evaluated."""
    figures = {name: getattr(report, name) for name in OF_EPOCH}
    known = {name: float(value) for name, value in figures.items() if value is not None}
    return MetricPoint(report.step, {EPOCH: report.epoch + 1, **known})


def params(run: Run) -> dict[str, bool | int | float | str]:
    """The settled recipe, the data and the weights that it starts from."""
    told = {
        **asdict(run.recipe),
        "data": run.data,
        "fingerprint": run.fingerprint,
        "weights": run.weights,
    }
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in told.items()
    }
