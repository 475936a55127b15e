"""The figures of an evaluation where every image has one class.

Per image, then added up image by image, in the plan's order (see `sums`). Nothing is kept of an
image but its numbers, and a few examples. Numpy alone.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.inference.metric_sums import CANDIDATES, EvalMetrics, ScoredImages, TopK, rows
from effnet_ray.train.class_metrics import ClassMetrics


def score_images(logits: npt.NDArray[Any], label: npt.ArrayLike) -> ScoredImages:
    """What the logits [n, K] say of images of these labels [n].

    `label`, `predicted` int64; `wrong`, whether they differ; `rank`, classes before the label's,
    int64; `loss`, `confidence` (the probability of `predicted`), `own` (of `label`) float64.
    Ties go to the lower class and NaN stands above all, as in training (`train/metrics`).
    """
    logits, label = logits.astype(np.float64), np.asarray(label, np.int64)
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
        "wrong": predicted != label,
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
    label_probability: float
    """Probability of `label`, 0 to 1."""
    loss: float
    """Nats."""
    thumbnail: str
    """A JPEG as base64; empty where none was asked for."""


@dataclass
class MulticlassMetrics(EvalMetrics):
    """Sums over images, and the examples worth a look."""

    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(label, predicted) → images: the confusion matrix, as far as it is not 0."""
    _own: npt.NDArray[np.float64] = field(init=False)
    """[K]: of a class's images, the probability that they are of it."""
    _sure: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = field(default_factory=list)
    """(predicted, confidence) of all mistakes."""
    _worst: TopK[Mistake] = field(init=False)
    _suspects: TopK[Mistake] = field(init=False)

    def __post_init__(self) -> None:
        self._own = np.zeros(self.classes)
        self._worst, self._suspects = TopK(self.examples), TopK(CANDIDATES * self.examples)

    def add(self, judged: ScoredImages) -> None:
        """Add some images, the next ones of the plan."""
        read = self._readable(judged)
        label, predicted, wrong = (judged[n][read] for n in ("label", "predicted", "wrong"))
        confidence = judged["confidence"][read]
        self._score(judged["loss"][read], judged["rank"][read])
        self.calibration.add(confidence, ~wrong)
        np.add.at(self._own, label, judged["own"][read])  # unbuffered, and so image by image
        self.confusion.update(zip(label.tolist(), predicted.tolist(), strict=True))
        self._sure.append((predicted[wrong], confidence[wrong]))
        names = ("image", "path", "label", "predicted", "confidence", "own", "loss", "thumbnail")
        for row in rows(judged, read & judged["wrong"], *names):
            mistake = Mistake(*row)
            self._worst.push(mistake.loss, mistake)
            self._suspects.push(mistake.confidence - mistake.label_probability, mistake)

    @cached_property
    def per_class(self) -> tuple[ClassMetrics, ...]:
        """All classes, in their own order."""
        support, predicted, right = (Counter[int]() for _ in range(3))
        for (label, taken), images in self.confusion.items():
            support[label] += images
            predicted[taken] += images
            right[label] += images * (label == taken)
        return tuple(
            ClassMetrics(k, support[k], predicted[k], right[k]) for k in range(self.classes)
        )

    @property
    def worst_classes(self) -> list[ClassMetrics]:
        """Classes of which there is something to tell, lowest F1 first."""
        return sorted(self.present, key=lambda one: (one.f1, -one.support, one.index))

    @property
    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """(label, predicted, images) of wrong pairs, the most frequent first."""
        wrong = ((*pair, images) for pair, images in self.confusion.items() if pair[0] != pair[1])
        return sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1]))

    @property
    def worst_mistakes(self) -> list[Mistake]:
        """Those with the highest loss, the worst first."""
        return self._worst.best()

    @property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """[K]: a class's mean probability among its own images; infinite where it has none."""
        support = np.asarray([one.support for one in self.per_class], np.float64)
        return np.where(support > 0, self._own / support.clip(min=1), np.inf)

    @property
    def label_error_count(self) -> int:
        """Mistakes that may be the label's.

        The network takes the image for another class with at least the mean probability that
        this class's own images have. Source: confident learning, Northcutt et al. 2021 (JAIR 70),
        eq. 1 and 2, as far as the other class is what the network says.
        """
        limits = self.thresholds
        return sum(int((sure >= limits[of]).sum()) for of, sure in self._sure)

    @property
    def label_errors(self) -> list[Mistake]:
        """Of those, the ones whose predicted class leads by most, first (normalized margin, §3.2).

        Chosen among ten times as many mistakes of the largest lead.
        """
        limits = self.thresholds
        found = [m for m in self._suspects.best() if m.confidence >= limits[m.predicted]]
        return found[: self.examples]
