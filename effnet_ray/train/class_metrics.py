"""Metrics of a single class. Imports no torch: drivers read them from checkpoints."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Counts of one class in an evaluation. Shares are 0 to 1, and 0 for an empty denominator."""

    index: int
    support: int
    """Images labelled with the class."""
    predicted: int
    """Images predicted as the class."""
    correct: int
    """Images labelled with and predicted as the class."""
    ap: float | None = None
    """Average precision, only with several labels per image; None for a class without images."""

    @property
    def precision(self) -> float:
        """Share of the predicted images that are labelled with the class."""
        return self.correct / max(1, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the labelled images that are predicted as the class."""
        return self.correct / max(1, self.support)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / max(1, self.support + self.predicted)

    def to_row(self) -> tuple[int, int, int, float | None]:
        """Its columns in checkpoint.json, whose rows are in class order."""
        return self.support, self.predicted, self.correct, self.ap


def class_metrics(rows: Iterable[Sequence[Any]]) -> tuple[ClassMetrics, ...]:
    """Metrics from (support, predicted, correct[, average precision]), in class order."""
    return tuple(ClassMetrics(index, *row) for index, row in enumerate(rows))


def has_average_precision(metrics: Iterable[ClassMetrics]) -> bool:
    """Whether any class has an average precision, which means several labels per image."""
    return any(metric.ap is not None for metric in metrics)


def macro_f1(metrics: Iterable[ClassMetrics]) -> float:
    """Mean F1 of the classes that have images."""
    scores = [metric.f1 for metric in metrics if metric.support]
    return sum(scores) / max(1, len(scores))
