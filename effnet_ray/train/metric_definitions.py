"""Definitions of the metrics that runs, releases, trackers and reports share.

A new share of hits, such as top-3 accuracy, is a row here (`EVAL_TOP1` and below), a name in
`EVAL_METRICS` (after the other shares: checkpoints store hits in that order) and a field of
`EvalValues`; nothing else. It then appears in epoch reports, tables, HTML pages, model cards and
the JSON lines.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

Z_95 = 1.959964
"""The standard normal distribution is between minus and plus this with a probability of 0.95."""
LOSS_FORMAT, SHARE_FORMAT, COUNT_FORMAT = ".4f", ".2%", ",.0f"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its key in JSON and how people read it."""

    key: str
    """Key in every JSON file and line, and field of EpochReport and Result."""
    name: str
    """Label without the split, as in "top-1"."""
    split: str
    """`train`, `eval` or `test`; empty for a count over the whole epoch."""
    format_spec: str
    higher_is_better: bool
    min_classes: int = 2
    """With fewer classes its value says nothing, and pages omit it."""
    top: int = 0
    """For a share of hits: an image is one if a label is among this many highest scores. 0 for
    another metric."""

    @property
    def is_share(self) -> bool:
        """Whether it is a share, 0 to 1, which people read as a percentage."""
        return self.format_spec == SHARE_FORMAT

    @property
    def label(self) -> str:
        """Label for people, as in "eval top-1"."""
        return f"{self.split} {self.name}".strip()

    @property
    def mode(self) -> str:
        """The better direction in the words of Ray Tune: `max` or `min`."""
        return "max" if self.higher_is_better else "min"

    def on(self, split: str) -> Self:
        """The same metric on another split."""
        return replace(self, key=f"{split}{self.key.removeprefix(self.split)}", split=split)

    def interval(self, value: float, images: int) -> tuple[float, float] | None:
        """Its 95 % confidence interval, measured on so many images; None if it is no share of
        them.

        Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical
        Inference": unlike value ± 2 standard errors it is right for few images and for shares
        near 0 and 1.
        """
        if not self.top or images < 1:
            return None
        ratio = Z_95**2 / images
        centre = (value + ratio / 2) / (1 + ratio)
        half = math.sqrt(value * (1 - value) * ratio + ratio**2 / 4) / (1 + ratio)
        # Where the value is 0 or 1 it is a bound itself, but for float noise.
        return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))

    def format(self, value: float, images: int = 0) -> str:
        """The value alone, as in "91.20%"; measured on `images`, with its interval, as in
        "91.20% (87.8 to 93.7)"."""
        interval = self.interval(value, images)
        suffix = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
        return format(value, self.format_spec) + suffix

    def describe(self, value: float, images: int = 0) -> str:
        """Label and value, as in "eval top-1 91.20%"."""
        return f"{self.label} {self.format(value, images)}"


def _loss(split: str) -> Metric:
    return Metric(f"{split}_loss", "loss", split, LOSS_FORMAT, higher_is_better=False)


def _share(split: str, suffix: str, name: str, top: int = 0) -> Metric:
    key = f"{split}_{suffix}"
    metric = Metric(key, name, split, SHARE_FORMAT, higher_is_better=True, top=top)
    return replace(metric, min_classes=top + 1) if top else metric


EVAL_LOSS = _loss("eval")
EVAL_TOP1 = _share("eval", "top1", "top-1", top=1)
EVAL_TOP5 = _share("eval", "top5", "top-5", top=5)
EVAL_MAP = _share("eval", "map", "mAP")
"""Mean average precision; only with several labels per image."""
TRAIN_LOSS, TRAIN_TOP1 = EVAL_LOSS.on("train"), EVAL_TOP1.on("train")
SKIPPED = Metric("skipped", "skipped steps", "", COUNT_FORMAT, higher_is_better=False)
QUARANTINED = Metric("quarantined", "quarantined images", "", COUNT_FORMAT, higher_is_better=False)

EVAL_SCORES = (EVAL_MAP, EVAL_TOP1)
"""Metrics that rank epochs and releases: the first one that has a value. So images with several
labels are ranked by mean average precision, others by top-1."""
TEST_SCORES = tuple(metric.on("test") for metric in EVAL_SCORES)
"""Metrics that summarize the test split."""
EVAL_METRICS = (*EVAL_SCORES, EVAL_TOP5, EVAL_LOSS)
"""Metrics of the eval split, as people read them: the ranking ones first."""
HIT_METRICS = tuple(metric for metric in EVAL_METRICS if metric.top)
"""Metrics that are shares of hits."""
TEST_METRICS = tuple(metric.on("test") for metric in EVAL_METRICS)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalValues:
    """Values of the `EVAL_METRICS`: fields of epoch reports and results.

    None: not computed, because the epoch was not evaluated, the data has one class per image, or
    the record is older than the metric.
    """

    eval_map: float | None = None
    """Eval mean average precision, 0 to 1; with several labels per image."""
    eval_top1: float | None = None
    """Eval top-1 accuracy, 0 to 1."""
    eval_top5: float | None = None
    """Eval top-5 accuracy, 0 to 1."""
    eval_loss: float | None = None
    """Mean eval loss, nats."""


EVAL_IMAGES = "eval_images"
"""Key of the number of eval images, in epoch reports and releases."""
EPOCH_METRICS = (TRAIN_LOSS, TRAIN_TOP1, *EVAL_METRICS, SKIPPED, QUARANTINED)
"""Metrics of one epoch: fields of EpochReport."""


@dataclass(frozen=True, slots=True)
class Score:
    """The metric by which models of one task are compared, and its value."""

    metric: Metric
    value: float
    images: int = 0
    """On how many images it was measured; 0 if that is unknown."""

    @classmethod
    def of(
        cls, values: Mapping[str, Any], scores: tuple[Metric, ...] = EVAL_SCORES
    ) -> "Score | None":
        """The score in `values`, by the metrics' keys; None if there is none."""
        images = values.get(EVAL_IMAGES) or 0
        found = (cls(m, values[m.key], images) for m in scores if values.get(m.key) is not None)
        return next(found, None)

    def __str__(self) -> str:
        return self.metric.format(self.value, self.images)


def eval_scores(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The `EVAL_SCORES` in `values`, by their keys."""
    return {metric.key: values.get(metric.key) for metric in EVAL_SCORES}


PROGRESS, DEVICE_SECONDS = "reached", "device_seconds"
"""Keys of a report to Ray Train beside metrics: share of the run's cost that is spent, 0 to 1, and
workers times the seconds since they started."""
