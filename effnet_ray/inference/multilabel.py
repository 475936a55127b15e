"""Evaluation metrics where an image may have any number of classes.

Each class is a decision of its own: predicted if its probability reaches the release's threshold
of the class, or 0.5 if it has none. Average precision
is not a sum over images, so labels and scores of all images are kept: 5 bytes for each image and
class, as in training's evaluation (`train.average_precision`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.inference.logits import PLAIN, first_label_rank, numpy_probabilities
from effnet_ray.inference.metric_sums import EvalMetrics, Mistake, ScoredImages, rows
from effnet_ray.release_format.calibration import THRESHOLD, Calibration
from effnet_ray.train.average_precision import average_precisions, mean_average_precision
from effnet_ray.train.class_metrics import ClassMetrics, class_metrics
from effnet_ray.train.metric_definitions import EVAL_MAP, Metric

ClassProbability = tuple[int, float]
"""A class, and its probability, 0 to 1."""


def score_images(
    logits: npt.NDArray[Any],
    labels: Sequence[Sequence[int]],
    calibration: Calibration = PLAIN,
) -> ScoredImages:
    """Columns about images with logits [n, K], each with any number of labels.

    `label` [n, K]: uint8, 0 or 1. `scores` [n, K]: the logits, float32. `wrong` [n]: whether the
    prediction of any class is wrong.
    """
    targets = np.zeros(logits.shape, np.uint8)
    for row, classes in zip(targets, labels, strict=True):
        row[list(classes)] = 1
    scores = logits.astype(np.float32)
    wrong = is_predicted(_probabilities(scores, calibration), calibration) != targets
    return {"label": targets, "scores": scores, "wrong": wrong.any(axis=1)}


def explained_class(scored: ScoredImages) -> npt.NDArray[np.int64]:
    """The class whose activation map explains each image [n]: the highest score of those that are
    not its labels."""
    others: npt.NDArray[Any] = np.where(scored["label"] > 0, -np.inf, scored["scores"])
    classes: npt.NDArray[np.int64] = others.argmax(axis=1)
    return classes


@dataclass(frozen=True, kw_only=True, slots=True)
class MultilabelMistake(Mistake):
    """An image with a wrong prediction for at least one class."""

    label: tuple[ClassProbability, ...]
    """Its labels, the most probable first."""
    predicted: tuple[ClassProbability, ...]
    """The predicted classes, the most probable first."""

    @property
    def false_positives(self) -> tuple[ClassProbability, ...]:
        """Predicted classes that are not labels."""
        labels = {index for index, _ in self.label}
        return tuple(item for item in self.predicted if item[0] not in labels)

    @property
    def false_negatives(self) -> tuple[ClassProbability, ...]:
        """Labels that are not predicted."""
        predicted = {index for index, _ in self.predicted}
        return tuple(item for item in self.label if item[0] not in predicted)

    @property
    def margin(self) -> float:
        """How much more probable the most confident wrong prediction is than its opposite, 0 to 1;
        0 if a threshold decided for the less probable."""
        return _margin(self.false_positives, self.false_negatives)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelError(MultilabelMistake):
    """A mistake of which the labels may be wrong."""

    missing_labels: tuple[ClassProbability, ...]
    """Classes that the image may have, besides its labels."""
    wrong_labels: tuple[ClassProbability, ...]
    """Labels that the image may not have."""

    @property
    def margin(self) -> float:
        """The margin of the most confident of these classes: see `MultilabelMistake.margin`."""
        return _margin(self.missing_labels, self.wrong_labels)


class MultilabelMetrics(EvalMetrics[MultilabelMistake, LabelError]):
    """Metrics of images with any number of classes."""

    def __init__(
        self,
        classes: int,
        examples: int = 24,
        mistakes: int = 0,
        calibration: Calibration = PLAIN,
    ) -> None:
        """As `EvalMetrics`."""
        super().__init__(classes, examples, mistakes, calibration)
        self._counts = np.zeros((3, classes), np.int64)
        """[3, K]: images with the label, with the prediction, and with both."""
        self._agreement = np.zeros((2, classes))
        """[2, K]: summed probability that the class is absent, over images without it; and that
        it is present, over images with it."""
        self._labels: list[npt.NDArray[np.uint8]] = []
        self._scores: list[npt.NDArray[np.float32]] = []
        """[n, K] for each `add`."""

    def add(self, scored: ScoredImages) -> None:
        """Add some images, the next ones of the split."""
        readable = self._count_images(scored)
        label, scores = scored["label"][readable], scored["scores"][readable]
        probability = _probabilities(scores, self.calibration)
        predicted = is_predicted(probability, self.calibration)
        loss = _losses(scores, label)
        self._add_loss_and_rank(loss, first_label_rank(scores, label))
        self._reliability.add(probability.ravel(), label.ravel())
        self._plain_reliability.add(_probabilities(scores).ravel(), label.ravel())
        self._counts += np.stack([label, predicted, label & predicted]).sum(axis=1, dtype=np.int64)
        agreement = np.stack([(1 - probability) * (1 - label), probability * label], 1)
        for image_agreement in agreement:  # image by image
            self._agreement += image_agreement
        self._labels.append(label)
        self._scores.append(scores)
        columns = rows(scored, readable, "wrong", "image", "path", "thumbnail", "map")
        for row, (wrong, image, path, thumbnail, class_map) in enumerate(columns):
            if wrong:
                mistake = MultilabelMistake(
                    image=image,
                    path=path,
                    loss=float(loss[row]),
                    thumbnail=thumbnail,
                    map=class_map,
                    label=_by_probability(probability[row], label[row]),
                    predicted=_by_probability(probability[row], predicted[row]),
                )
                self._add_mistake(mistake)

    @cached_property
    def per_class(self) -> tuple[ClassMetrics, ...]:
        """All classes, in their own order; all but `ap` at the thresholds."""
        columns = (*self._counts.tolist(), average_precisions(*self._all_images()))
        return class_metrics(zip(*columns, strict=True))

    @property
    def worst_classes(self) -> list[ClassMetrics]:
        """The classes of `present`, the lowest AP first, those without AP last."""
        return sorted(self.present, key=lambda row: (2 if row.ap is None else row.ap, row.index))

    def _all_images(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Labels and scores [n, K] of all readable images, in the order of the split."""
        empty = np.empty((0, self.classes), np.uint8)
        # The joined arrays replace the parts, so memory holds them once.
        self._labels = [np.concatenate([empty, *self._labels])]
        self._scores = [np.concatenate([empty.astype(np.float32), *self._scores])]
        return self._labels[0], self._scores[0]

    @property
    def mean_ap(self) -> float:
        """Mean average precision over the classes that have images, 0 to 1.

        Training uses other batches, so its value may differ: float noise decides which of two
        equal images ranks first.
        """
        return mean_average_precision([row.ap for row in self.per_class])

    @property
    def scores(self) -> dict[Metric, float]:
        """The `EVAL_METRICS` and their values."""
        return {EVAL_MAP: self.mean_ap} | super().scores

    @property
    def micro_f1(self) -> float:
        """F1 over all decisions, whatever their class."""
        support, predicted, correct = self._counts.sum(axis=1).tolist()
        return float(2 * correct / max(1, support + predicted))

    @cached_property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """[2, K]: mean probability that a class is absent, over images without it; and that it is
        present, over images with it. Infinite if there are no such images."""
        support = self._counts[0]
        images = np.stack([self.images - support, support])
        return np.where(images > 0, self._agreement / images.clip(min=1), np.inf)

    @property
    def label_error_count(self) -> int:
        """Number of images where a wrong decision reaches the threshold of the class.

        Source: confident learning, Northcutt et al. 2021 (JAIR 70), eq. 1 and 2, for each class
        against the rest, as in Thyagarajan et al. 2022, "Identifying Incorrect Annotations in
        Multi-Label Classification Data".
        """
        absent, present = self.thresholds
        labels, scores = self._all_images()
        suspected = np.zeros(len(labels), bool)
        for k, (label, score) in enumerate(zip(labels.T == 1, scores.T, strict=True)):
            calibration = self.calibration.of_class(k)
            p = _probabilities(score, calibration)
            predicted = is_predicted(p, calibration)
            suspected |= ~label & predicted & (p >= max(THRESHOLD, present[k]))
            suspected |= label & ~predicted & (p < THRESHOLD) & (1 - p >= absent[k])
        return int(suspected.sum())

    def _as_label_error(self, mistake: MultilabelMistake) -> LabelError | None:
        absent, present = self.thresholds
        missing = tuple(
            (k, p) for k, p in mistake.false_positives if p >= max(THRESHOLD, present[k])
        )
        wrong = tuple(
            (k, p) for k, p in mistake.false_negatives if p < THRESHOLD and 1 - p >= absent[k]
        )
        if not (missing or wrong):
            return None
        return LabelError(**asdict(mistake), missing_labels=missing, wrong_labels=wrong)


def is_predicted(
    probability: npt.NDArray[np.float64], calibration: Calibration
) -> npt.NDArray[np.bool_]:
    """Whether each class is predicted, [n, K], of probabilities [n, K]."""
    predicted: npt.NDArray[np.bool_] = probability >= (calibration.thresholds or THRESHOLD)
    return predicted


def _probabilities(
    scores: npt.NDArray[Any], calibration: Calibration = PLAIN
) -> npt.NDArray[np.float64]:
    return numpy_probabilities(scores, calibration, multilabel=True)


def _losses(scores: npt.NDArray[Any], label: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[n]: binary cross-entropy, nats, mean over the classes, as in `train.loss`."""
    logits = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):
        losses: npt.NDArray[np.float64] = (np.logaddexp(0.0, logits) - logits * label).mean(axis=1)
    return losses


def _margin(present: Sequence[ClassProbability], absent: Sequence[ClassProbability]) -> float:
    """By how much the most certain decision is more probable than its opposite, 0 to 1: that a
    class is present, or absent."""
    margins = [2 * p - 1 for _, p in present] + [1 - 2 * p for _, p in absent]
    return max(0.0, *margins) if margins else 0.0


def _by_probability(
    probability: npt.NDArray[Any], mask: npt.NDArray[Any]
) -> tuple[ClassProbability, ...]:
    """The classes in `mask` with their probabilities, the most probable first."""
    classes = [(int(k), float(probability[k])) for k in np.flatnonzero(mask)]
    return tuple(sorted(classes, key=lambda item: (-item[1], item[0])))
