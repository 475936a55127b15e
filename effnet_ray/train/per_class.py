"""What an evaluation finds class by class. Without torch: drivers read it from checkpoints."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The figures of one class. Shares are 0 to 1, and 0 where nothing was to be divided."""

    index: int
    support: int
    """Images of it."""
    predicted: int
    """Images taken for it."""
    right: int
    """Images of it that were taken for it."""
    ap: float | None = None
    """Average precision, where images may have several classes; None where none is of it."""

    @property
    def precision(self) -> float:
        """Of the images taken for it, the share that are."""
        return self.right / max(1, self.predicted)

    @property
    def recall(self) -> float:
        """Of its images, the share that were found."""
        return self.right / max(1, self.support)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.right / max(1, self.support + self.predicted)


def class_metrics(figures: Iterable[Sequence[Any]]) -> tuple[ClassMetrics, ...]:
    """Of each class's support, predicted, right and perhaps `ap`, in the classes' order."""
    return tuple(ClassMetrics(index, *each) for index, each in enumerate(figures))


def has_average_precision(found: Iterable[ClassMetrics]) -> bool:
    """Whether average precisions are known: images may have several classes."""
    return any(each.ap is not None for each in found)


def macro_f1(found: Iterable[ClassMetrics]) -> float:
    """Mean F1 of the classes that have images."""
    shares = [each.f1 for each in found if each.support]
    return sum(shares) / max(1, len(shares))
