"""The figures of an evaluation: per image, then added up image by image, in the plan's order.

Every sum is float64 and grows by one image at a time, so it does not depend on how the images
were cut into batches or dealt to workers. Nothing is kept of an image but its numbers, and a few
examples. Numpy alone.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15
"""Of the reliability diagram: Guo et al. 2017, §4.1 and tables."""
CANDIDATES = 10
"""For one suspected label error that is shown, so many are kept until it is clear which are."""

Judged = dict[str, npt.NDArray[Any]]
"""Per image [n]: `label`, `predicted` int64; `rank`, classes before the label's, int64; `loss`,
`confidence` (the probability of `predicted`), `own` (of `label`) float64; `image` its id,
`path`, `bad` (why it could not be read, or empty), `thumbnail` (JPEG as base64, or empty)."""


def judge(logits: npt.NDArray[Any], label: npt.NDArray[np.int64]) -> Judged:
    """What the logits [n, K] say of images of these labels [n].

    Ties go to the lower class and NaN stands above all, as in training (`train/metrics`).
    """
    logits = logits.astype(np.float64)
    each = np.arange(len(label))
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    order = np.nan_to_num(logits, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    predicted, truth = order.argmax(axis=1), order[each, label][:, None]
    lower = np.arange(order.shape[1]) < label[:, None]
    before = (order > truth) | ((order == truth) & lower)
    return {
        "label": label,
        "predicted": predicted,
        "rank": before.sum(axis=1),
        "loss": -logs[each, label],
        "confidence": np.exp(logs[each, predicted]),
        "own": np.exp(logs[each, label]),
    }


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image whose label is not what the network says."""

    image: int
    """Its id."""
    path: str
    """In the source that was packed."""
    label: int
    predicted: int
    confidence: float
    """Probability of `predicted`, 0 to 1."""
    own: float
    """Probability of `label`, 0 to 1."""
    loss: float
    """Nats."""
    thumbnail: str
    """A JPEG as base64; empty where none was asked for."""


@dataclass(frozen=True, slots=True)
class Class:
    """The figures of one class. Shares are 0 to 1, and 0 where nothing was to be divided."""

    index: int
    support: int
    """Images of it."""
    predicted: int
    """Images taken for it."""
    right: int
    """Images of it that were taken for it."""

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


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose confidence lies in one interval (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean; 0 where there are no images."""
    top1: float
    """Share of right ones; 0 where there are no images."""


@dataclass
class Figures:
    """Sums over images, and the examples worth a look."""

    classes: int
    examples: int = 24
    """How many mistakes and suspected label errors to keep."""
    seen: int = 0
    """Images, the quarantined ones included."""
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Quarantined images: id → (path, reason)."""
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(label, predicted) → images: the confusion matrix, as far as it is not 0."""
    _sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """loss, top-1, top-5."""
    _bins: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((BINS, 3)))
    """images, confidence, right."""
    _own: npt.NDArray[np.float64] = field(init=False)
    """[K]: of a class's images, the probability that they are of it."""
    _sure: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = field(default_factory=list)
    """(predicted, confidence) of all mistakes."""
    _worst: "_Top" = field(init=False)
    _suspects: "_Top" = field(init=False)

    def __post_init__(self) -> None:
        self._own = np.zeros(self.classes)
        self._worst, self._suspects = _Top(self.examples), _Top(CANDIDATES * self.examples)

    def add(self, judged: Judged) -> None:
        """Add some images, the next ones of the plan."""
        self.seen += len(judged["label"])
        read = judged["bad"] == ""
        for image, path, why in _rows(judged, ~read, "image", "path", "bad"):
            self.bad[image] = path, why
        label, predicted = judged["label"][read], judged["predicted"][read]
        loss, confidence = judged["loss"][read], judged["confidence"][read]
        right = predicted == label
        hits = [loss, right, judged["rank"][read] < 5]
        # Unbuffered, and so image by image: any other cut into blocks gives the same sums.
        np.add.at(self._sums, np.tile(np.arange(3), len(label)), np.stack(hits, 1).ravel())
        np.add.at(self._own, label, judged["own"][read])
        bins = np.nan_to_num(np.ceil(confidence * BINS) - 1).clip(0, BINS - 1).astype(np.int64)
        np.add.at(self._bins, bins, np.stack([np.ones_like(loss), confidence, right], 1))
        self.pairs.update(zip(label.tolist(), predicted.tolist(), strict=True))
        self._sure.append((predicted[~right], confidence[~right]))
        wrong = read & (judged["predicted"] != judged["label"])
        names = ("image", "path", "label", "predicted", "confidence", "own", "loss", "thumbnail")
        for row in _rows(judged, wrong, *names):
            mistake = Mistake(*row)
            self._worst.push(mistake.loss, mistake)
            self._suspects.push(mistake.confidence - mistake.own, mistake)

    @property
    def images(self) -> int:
        """Images that could be read: what every share is of."""
        return self.seen - len(self.bad)

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return self._mean(0)

    @property
    def top1(self) -> float:
        """Share of images whose highest score is the label's, 0 to 1."""
        return self._mean(1)

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five highest scores, 0 to 1."""
        return self._mean(2)

    def _mean(self, index: int) -> float:
        return float(self._sums[index] / max(1, self.images))

    @cached_property
    def per_class(self) -> tuple[Class, ...]:
        """All classes, in their own order."""
        support, predicted, right = (Counter[int]() for _ in range(3))
        for (label, taken), images in self.pairs.items():
            support[label] += images
            predicted[taken] += images
            right[label] += images * (label == taken)
        return tuple(Class(k, support[k], predicted[k], right[k]) for k in range(self.classes))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images."""
        found = [one.f1 for one in self.per_class if one.support]
        return sum(found) / max(1, len(found))

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram: 15 bins of equal width over the confidence."""
        return tuple(
            Bin(at / BINS, (at + 1) / BINS, int(images), confidence / max(1, images),
                right / max(1, images))
            for at, (images, confidence, right) in enumerate(self._bins.tolist())
        )  # fmt: skip

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: |top-1 − confidence| of the bins, by their images.

        Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
        """
        gaps = (one.images * abs(one.top1 - one.confidence) for one in self.bins)
        return math.fsum(gaps) / max(1, self.images)

    @property
    def confused(self) -> list[tuple[int, int, int]]:
        """(label, predicted, images) of wrong pairs, the most frequent first."""
        wrong = ((*pair, images) for pair, images in self.pairs.items() if pair[0] != pair[1])
        return sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1]))

    @property
    def worst(self) -> list[Mistake]:
        """Those with the highest loss, the worst first."""
        return self._worst.best()

    @property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """[K]: a class's mean probability among its own images; infinite where it has none."""
        support = np.asarray([one.support for one in self.per_class], np.float64)
        return np.where(support > 0, self._own / support.clip(min=1), np.inf)

    @property
    def suspected(self) -> int:
        """Mistakes that may be the label's.

        The network takes the image for another class with at least the mean probability that
        this class's own images have. Source: confident learning, Northcutt et al. 2021 (JAIR 70),
        eq. 1 and 2, as far as the other class is what the network says.
        """
        limits = self.thresholds
        return sum(int((sure >= limits[of]).sum()) for of, sure in self._sure)

    @property
    def suspects(self) -> list[Mistake]:
        """Of those, the ones whose predicted class leads by most, first (normalized margin, §3.2).

        Chosen among ten times as many mistakes of the largest lead.
        """
        limits = self.thresholds
        found = [m for m in self._suspects.best() if m.confidence >= limits[m.predicted]]
        return found[: self.examples]


def _rows(judged: Judged, which: npt.NDArray[np.bool_], *names: str) -> Iterable[Sequence[Any]]:
    """Some columns of some images, image by image."""
    return zip(*(judged[name][which].tolist() for name in names), strict=True)


class _Top:
    """The mistakes with the highest scores; of equal ones the lower id."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Mistake]] = []

    def push(self, score: float, mistake: Mistake) -> None:
        """Keep it while it is among them."""
        entry = (score, -mistake.image, mistake)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif self._most:
            heapq.heappushpop(self._heap, entry)

    def best(self) -> list[Mistake]:
        """Highest first."""
        return [mistake for *_, mistake in sorted(self._heap, key=lambda entry: entry[:2])[::-1]]
