"""What figures of an evaluation are made of: sums over images, a class's figures, the worst few.

Every sum is float64 and grows by one image at a time, so it does not depend on how the images
were cut into batches or dealt to workers. Numpy alone.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from effnet_ray.train.class_metrics import ClassMetrics, macro_f1

BINS = 15
"""Of the reliability diagram: Guo et al. 2017, §4.1 and tables."""
CANDIDATES = 10
"""For one suspected label error that is shown, so many are kept until it is clear which are."""

ScoredImages = dict[str, npt.NDArray[Any]]
"""What was said of some images, a column each, [n, …]. Always among them: `image` its id, `path`,
`bad` (why it could not be read, or empty), `wrong` (whether it was mistaken for something),
`thumbnail` (JPEG as base64, or empty)."""


@dataclass(frozen=True, slots=True)
class Bin:
    """What was said with a probability in one interval (low, high]."""

    low: float
    high: float
    count: int
    probability: float
    """Mean; 0 where nothing was said."""
    true: float
    """Share of it that is so; 0 where nothing was said."""


class Calibration:
    """How often what is said with a probability is so: 15 bins of equal width."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))  # count, probability, true

    def add(self, probability: npt.NDArray[Any], true: npt.NDArray[Any]) -> None:
        """What was said next, [n]: with this probability, and whether it is so."""
        at = np.nan_to_num(np.ceil(probability * BINS) - 1).clip(0, BINS - 1).astype(np.int64)
        columns = (np.ones_like(probability), probability, true)
        for sums, values in zip(self._sums, columns, strict=True):
            np.add.at(sums, at, values)  # unbuffered, and so one by one

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram."""
        return tuple(
            Bin(at / BINS, (at + 1) / BINS, int(count), probability / max(1, count),
                true / max(1, count))
            for at, (count, probability, true) in enumerate(self._sums.T.tolist())
        )  # fmt: skip

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: |true − probability| of the bins, by counts."""
        gaps = (one.count * abs(one.true - one.probability) for one in self.bins)
        return math.fsum(gaps) / max(1, sum(one.count for one in self.bins))


@dataclass
class EvalMetrics(ABC):
    """What is told of images whether they have one class or several."""

    classes: int
    examples: int = 24
    """How many mistakes and suspected label errors to keep."""
    processed: int = 0
    """Images, the quarantined ones included."""
    unreadable: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Quarantined images: id → (path, reason)."""
    calibration: Calibration = field(default_factory=Calibration)
    _sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """loss, top-1, top-5."""

    @abstractmethod
    def add(self, judged: ScoredImages) -> None:
        """Add some images, the next ones of the plan."""

    @property
    @abstractmethod
    def per_class(self) -> Sequence[ClassMetrics]:
        """All classes, in their own order."""

    @property
    def present(self) -> list[ClassMetrics]:
        """Classes of which there is something to tell."""
        return [one for one in self.per_class if one.support or one.predicted]

    @property
    @abstractmethod
    def worst_classes(self) -> Sequence[ClassMetrics]:
        """Those, the worst recognised first."""

    @property
    @abstractmethod
    def label_error_count(self) -> int:
        """Images whose label may be wrong."""

    def _readable(self, judged: ScoredImages) -> npt.NDArray[np.bool_]:
        """Count images as seen and name those that could not be read; [n] which could."""
        read: npt.NDArray[np.bool_] = judged["bad"] == ""
        self.processed += len(read)
        for image, path, why in rows(judged, ~read, "image", "path", "bad"):
            self.unreadable[image] = path, why
        return read

    def _score(self, loss: npt.NDArray[Any], rank: npt.NDArray[Any]) -> None:
        """Add losses [n], and as hits the images that fewer than 1 and 5 other classes precede."""
        columns = np.stack([loss, rank < 1, rank < 5], 1)
        # Unbuffered, and so image by image: any other cut into blocks gives the same sums.
        np.add.at(self._sums, np.tile(np.arange(3), len(loss)), columns.ravel())

    @property
    def images(self) -> int:
        """Images that could be read: what every share is of."""
        return self.processed - len(self.unreadable)

    @property
    def loss(self) -> float:
        """Mean, nats: cross-entropy, or binary cross-entropy where there are several classes."""
        return self._mean(0)

    @property
    def top1(self) -> float:
        """Share of images whose highest score is of a class of their own, 0 to 1."""
        return self._mean(1)

    @property
    def top5(self) -> float:
        """Share of images with a class of their own among the five highest scores, 0 to 1."""
        return self._mean(2)

    def _mean(self, index: int) -> float:
        return float(self._sums[index] / max(1, self.images))

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram: of the confidence, or of the probability of every class."""
        return self.calibration.bins

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1.

        Of one class: of the confidence, over images (Guo et al. 2017, "On Calibration of Modern
        Neural Networks", eq. 3). Of several: of the probability of being of a class, over images
        and classes (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian
        Binning").
        """
        return self.calibration.error

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images."""
        return macro_f1(self.per_class)


def rows(
    judged: ScoredImages, which: npt.NDArray[np.bool_], *names: str
) -> Iterable[Sequence[Any]]:
    """Some columns of some images, image by image."""
    return zip(*(judged[name][which].tolist() for name in names), strict=True)


class Numbered(Protocol):
    """Something said of one image."""

    @property
    def image(self) -> int:
        """Its id."""
        ...


M = TypeVar("M", bound=Numbered)


class TopK(Generic[M]):
    """The mistakes with the highest scores; of equal ones the lower id."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, M]] = []

    def push(self, score: float, mistake: M) -> None:
        """Keep it while it is among them."""
        entry = (score, -mistake.image, mistake)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif self._most:
            heapq.heappushpop(self._heap, entry)

    def best(self) -> list[M]:
        """Highest first."""
        return [mistake for *_, mistake in sorted(self._heap, key=lambda entry: entry[:2])[::-1]]
