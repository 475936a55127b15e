"""Evaluation metrics where every image has one class.

Only sums are kept per image, and details of the worst mistakes (see `metric_sums`).
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.inference.logits import PLAIN, label_rank, log_probabilities, predicted_class
from effnet_ray.inference.metric_sums import EvalMetrics, Mistake, ScoredImages, rows
from effnet_ray.release_format.calibration import Calibration
from effnet_ray.train.class_metrics import ClassMetrics


def score_images(
    logits: npt.NDArray[Any], label: npt.ArrayLike, calibration: Calibration = PLAIN
) -> ScoredImages:
    """Columns about images with logits [n, K] and labels [n].

    `label`, `predicted`: int64. `wrong`: whether they differ. `rank`: classes before the label,
    int64. `loss` (of the plain logits), `confidence` (the probability of `predicted`),
    `plain_confidence` (that of the plain logits), `label_probability`: float64.
    """
    label = np.asarray(label, np.int64)
    image = np.arange(len(label))
    plain = log_probabilities(logits, multilabel=False)
    calibrated = log_probabilities(logits, calibration, multilabel=False)
    predicted = predicted_class(logits)
    return {
        "label": label,
        "predicted": predicted,
        "wrong": predicted != label,
        "rank": label_rank(logits, label),
        "loss": -plain[image, label],
        "confidence": np.exp(calibrated[image, predicted]),
        "plain_confidence": np.exp(plain[image, predicted]),
        "label_probability": np.exp(calibrated[image, label]),
    }


def explained_class(scored: ScoredImages) -> npt.NDArray[np.int64]:
    """The class whose activation map explains each image [n]: the predicted one."""
    return scored["predicted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MulticlassMistake(Mistake):
    """An image whose predicted class is not its label."""

    label: int
    predicted: int
    confidence: float
    """Probability of `predicted`, 0 to 1."""
    label_probability: float
    """Probability of `label`, 0 to 1."""

    @property
    def margin(self) -> float:
        """How much more probable the prediction is than the label, 0 to 1."""
        return self.confidence - self.label_probability

    @property
    def doubt(self) -> float:
        """1 minus the label's probability (*self-confidence*)."""
        return 1 - self.label_probability


MISTAKE_COLUMNS = (
    "image",
    "path",
    "loss",
    "thumbnail",
    "map",
    "label",
    "predicted",
    "confidence",
    "label_probability",
)
"""Columns of ScoredImages that make a mistake."""


class MulticlassMetrics(EvalMetrics[MulticlassMistake, MulticlassMistake]):
    """Metrics of images with one class each; a suspected label error is one of the mistakes."""

    def __init__(
        self,
        classes: int,
        examples: int = 24,
        mistakes: int = 0,
        calibration: Calibration = PLAIN,
    ) -> None:
        """As `EvalMetrics`."""
        super().__init__(classes, examples, mistakes, calibration)
        self.confusion = Counter[tuple[int, int]]()
        """The confusion matrix: (label, predicted) → images, if any."""
        self._label_probability = np.zeros(classes)  # [K], summed over each class's images
        self._wrong: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        """(predicted, confidence) of all mistakes, an array for each `add`."""

    def add(self, scored: ScoredImages) -> None:
        """Add some images, the next ones of the split."""
        readable = self._count_images(scored)
        label, predicted = scored["label"][readable], scored["predicted"][readable]
        confidence, wrong = scored["confidence"][readable], scored["wrong"][readable]
        self._add_loss_and_rank(scored["loss"][readable], scored["rank"][readable])
        self._reliability.add(confidence, ~wrong)
        self._plain_reliability.add(scored["plain_confidence"][readable], ~wrong)
        # Unbuffered, and so image by image.
        np.add.at(self._label_probability, label, scored["label_probability"][readable])
        self.confusion.update(zip(label.tolist(), predicted.tolist(), strict=True))
        self._wrong.append((predicted[wrong], confidence[wrong]))
        for row in rows(scored, readable & scored["wrong"], *MISTAKE_COLUMNS):
            self._add_mistake(MulticlassMistake(**dict(zip(MISTAKE_COLUMNS, row, strict=True))))

    @cached_property
    def per_class(self) -> tuple[ClassMetrics, ...]:
        """All classes, in their own order."""
        support, predicted, correct = Counter[int](), Counter[int](), Counter[int]()
        for (label, prediction), count in self.confusion.items():
            support[label] += count
            predicted[prediction] += count
            if label == prediction:
                correct[label] += count
        return tuple(
            ClassMetrics(k, support[k], predicted[k], correct[k]) for k in range(self.classes)
        )

    @property
    def worst_classes(self) -> list[ClassMetrics]:
        """The classes of `present`, the lowest F1 first."""
        return sorted(self.present, key=lambda row: (row.f1, -row.support, row.index))

    @property
    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """(label, predicted, images) of wrong predictions, the most frequent first."""
        wrong = [
            (label, predicted, count)
            for (label, predicted), count in self.confusion.items()
            if label != predicted
        ]
        return sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1]))

    @cached_property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """[K]: a class's mean probability over its own images; infinite if it has none."""
        support = np.asarray([row.support for row in self.per_class], np.float64)
        return np.where(support > 0, self._label_probability / support.clip(min=1), np.inf)

    @property
    def label_error_count(self) -> int:
        """Number of mistakes whose confidence reaches the threshold of the predicted class.

        Source: confident learning, Northcutt et al. 2021 (JAIR 70), eq. 1 and 2, restricted to
        the predicted class.
        """
        thresholds = self.thresholds
        return sum(
            int((confidence >= thresholds[predicted]).sum())
            for predicted, confidence in self._wrong
        )

    def _as_label_error(self, mistake: MulticlassMistake) -> MulticlassMistake | None:
        reached = mistake.confidence >= self.thresholds[mistake.predicted]
        return mistake if reached else None
