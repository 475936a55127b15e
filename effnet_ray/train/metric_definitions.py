"""Definitions of the metrics that runs, releases, trackers and reports share."""

from collections.abc import Mapping
from dataclasses import dataclass

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

    @property
    def label(self) -> str:
        """Label for people, as in "eval top-1"."""
        return f"{self.split} {self.name}".strip()

    def format(self, value: float) -> str:
        """The value alone, as in "91.20%"."""
        return format(value, self.format_spec)

    def describe(self, value: float) -> str:
        """Label and value, as in "eval top-1 91.20%"."""
        return f"{self.label} {self.format(value)}"


def _loss(split: str) -> Metric:
    return Metric(f"{split}_loss", "loss", split, LOSS_FORMAT, higher_is_better=False)


def _share(split: str, suffix: str, name: str) -> Metric:
    return Metric(f"{split}_{suffix}", name, split, SHARE_FORMAT, higher_is_better=True)


TRAIN_LOSS, TRAIN_TOP1 = _loss("train"), _share("train", "top1", "top-1")
EVAL_LOSS = _loss("eval")
EVAL_TOP1, EVAL_TOP5 = _share("eval", "top1", "top-1"), _share("eval", "top5", "top-5")
EVAL_MAP = _share("eval", "map", "mAP")
"""Mean average precision; only with several labels per image."""
TEST_LOSS = _loss("test")
TEST_TOP1, TEST_TOP5 = _share("test", "top1", "top-1"), _share("test", "top5", "top-5")
TEST_MAP = _share("test", "map", "mAP")
SKIPPED = Metric("skipped", "skipped steps", "", COUNT_FORMAT, higher_is_better=False)
QUARANTINED = Metric("quarantined", "quarantined images", "", COUNT_FORMAT, higher_is_better=False)

EPOCH_METRICS = (
    TRAIN_LOSS,
    TRAIN_TOP1,
    EVAL_LOSS,
    EVAL_TOP1,
    EVAL_TOP5,
    EVAL_MAP,
    SKIPPED,
    QUARANTINED,
)
"""Metrics of one epoch: fields of EpochReport."""
EVAL_SCORES = (EVAL_MAP, EVAL_TOP1)
"""Metrics that rank epochs and releases: the first one that has a value."""
TEST_SCORES = (TEST_MAP, TEST_TOP1)
"""Metrics that summarize the test split."""


def ranking_metric(
    values: Mapping[str, float | None], scores: tuple[Metric, ...] = EVAL_SCORES
) -> Metric | None:
    """The metric that ranks a model by `values` (JSON key → value); None if it has no score.

    Mean average precision where images may have several labels, top-1 otherwise.
    """
    return next((metric for metric in scores if values.get(metric.key) is not None), None)


PROGRESS, DEVICE_SECONDS = "reached", "device_seconds"
"""Keys of a report to Ray Train beside metrics: share of the run's cost that is spent, 0 to 1, and
workers times the seconds since they started."""
