"""The figures of an evaluation where an image may have several classes.

Every class is a question by itself: is it there, yes (a probability of 0.5 or more) or no. Sums
grow image by image, in the plan's order (see `sums`). Average precision is no sum: scores and
labels of all images are held, 5 bytes for each image and class, as in training's evaluation
(`train/ranking`). Numpy alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.inference.metric_sums import CANDIDATES, EvalMetrics, ScoredImages, TopK, rows
from effnet_ray.train.average_precision import average_precisions, mean_average_precision
from effnet_ray.train.class_metrics import ClassMetrics, class_metrics

Told = tuple[int, float]
"""A class, and its probability, 0 to 1."""


def score_images(logits: npt.NDArray[Any], label: Sequence[Sequence[int]]) -> ScoredImages:
    """What the logits [n, K] say of images, each of any number of classes.

    `label` [n, K] uint8, 0 or 1; `scores` [n, K] float32, the logits; `wrong` [n], whether what
    is said of any class is not so.
    """
    known = np.zeros(logits.shape, np.uint8)
    for row, own in zip(known, label, strict=True):
        row[list(own)] = 1
    scores = logits.astype(np.float32)
    wrong = (_probability(scores) >= 0.5) != known
    return {"label": known, "scores": scores, "wrong": wrong.any(axis=1)}


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image of which something is said that its labels do not, or the reverse."""

    image: int
    """Its id."""
    path: str
    """In the source that was packed."""
    label: tuple[Told, ...]
    """Its classes, the likeliest first."""
    predicted: tuple[Told, ...]
    """Classes of a probability of 0.5 or more, the likeliest first."""
    loss: float
    """Nats."""
    thumbnail: str
    """A JPEG as base64; empty where none was asked for."""

    @property
    def false_positives(self) -> tuple[Told, ...]:
        """Said, and no label."""
        own = {index for index, _ in self.label}
        return tuple(told for told in self.predicted if told[0] not in own)

    @property
    def false_negatives(self) -> tuple[Told, ...]:
        """A label, and not said."""
        return tuple(told for told in self.label if told[1] < 0.5)

    @property
    def lead(self) -> float:
        """How much likelier than its opposite is the surest of what is wrong, 0 to 1."""
        return max(
            (abs(2 * share - 1) for _, share in (*self.false_positives, *self.false_negatives)),
            default=0.0,
        )


@dataclass(frozen=True, slots=True)
class LabelError:
    """An image whose labels may be wrong: the classes in doubt."""

    mistake: Mistake
    missing_labels: tuple[Told, ...]
    """That it seems to have."""
    wrong_labels: tuple[Told, ...]
    """Labels that it seems not to have."""

    @property
    def lead(self) -> float:
        """Of the surest, 0 to 1: see `Mistake.lead`."""
        return max(abs(2 * share - 1) for _, share in (*self.missing_labels, *self.wrong_labels))


@dataclass
class MultilabelMetrics(EvalMetrics):
    """Sums over images, the scores of all of them, and the examples worth a look."""

    _counts: npt.NDArray[np.int64] = field(init=False)
    """[3, K]: images of a class, images said to be, and both."""
    _agreed: npt.NDArray[np.float64] = field(init=False)
    """[2, K]: summed probability that a class is not there, where it is not; that it is, where it
    is."""
    _labels: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _scores: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """[n, K] each."""
    _worst: TopK[Mistake] = field(init=False)
    _suspects: TopK[Mistake] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = np.zeros((3, self.classes), np.int64)
        self._agreed = np.zeros((2, self.classes))
        self._worst, self._suspects = TopK(self.examples), TopK(CANDIDATES * self.examples)

    def add(self, judged: ScoredImages) -> None:
        """Add some images, the next ones of the plan."""
        read = self._readable(judged)
        label, scores = judged["label"][read], judged["scores"][read]
        share, said = _probability(scores), _probability(scores) >= 0.5
        loss = _losses(scores, label)
        self._score(loss, _best_rank(scores, label))
        self.calibration.add(share.ravel(), label.ravel())
        self._counts += np.stack([label, said, label & said]).sum(axis=1, dtype=np.int64)
        for agreed in np.stack([(1 - share) * (1 - label), share * label], 1):
            self._agreed += agreed  # image by image
        self._labels.append(label)
        self._scores.append(scores)
        about = rows(judged, read, "wrong", "image", "path", "thumbnail")
        for at, (wrong, image, path, thumbnail) in enumerate(about):
            if wrong:
                own, taken = (_told(share[at], which[at]) for which in (label, said))
                self._keep(Mistake(image, path, own, taken, float(loss[at]), thumbnail))

    def _keep(self, mistake: Mistake) -> None:
        self._worst.push(mistake.loss, mistake)
        self._suspects.push(mistake.lead, mistake)

    @cached_property
    def per_class(self) -> tuple[ClassMetrics, ...]:
        """All classes, in their own order; at a probability of 0.5, but for `ap`."""
        columns = (*self._counts.tolist(), average_precisions(*self._all()))
        return class_metrics(zip(*columns, strict=True))

    @property
    def worst_classes(self) -> list[ClassMetrics]:
        """Classes of which there is something to tell: lowest AP first, those without any last."""
        present = [one for one in self.per_class if one.support or one.predicted]
        return sorted(present, key=lambda one: (2 if one.ap is None else one.ap, one.index))

    def _all(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Labels and scores [n, K] of all images that could be read, in the plan's order."""
        nothing = np.empty((0, self.classes), np.uint8)
        self._labels = [np.concatenate([nothing, *self._labels])]  # held once
        self._scores = [np.concatenate([nothing.astype(np.float32), *self._scores])]
        return self._labels[0], self._scores[0]

    @property
    def mean_ap(self) -> float:
        """Mean average precision over the classes that have images, 0 to 1.

        As in training, whose batches are others: which of two equal pictures stands first is
        float noise.
        """
        return mean_average_precision([one.ap for one in self.per_class])

    @property
    def micro_f1(self) -> float:
        """F1 of all decisions, whatever their class."""
        support, said, right = self._counts.sum(axis=1).tolist()
        return float(2 * right / max(1, support + said))

    @property
    def worst_mistakes(self) -> list[Mistake]:
        """Those with the highest loss, the worst first."""
        return self._worst.best()

    @property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """[2, K]: how sure the network is, in the mean, that a class is not there where it is not.

        And that it is there where it is; infinite where there are no such images.
        """
        support = self._counts[0]
        images = np.stack([self.images - support, support])
        return np.where(images > 0, self._agreed / images.clip(min=1), np.inf)

    @property
    def label_error_count(self) -> int:
        """Images with a label that may be wrong, or lacking.

        Of a class something else is said than the label, with at least the mean probability
        that this has where the label says it, too. Source: confident learning, Northcutt et al.
        2021 (JAIR 70), eq. 1 and 2, for each class against the rest, as in Thyagarajan et al.
        2022, "Identifying Incorrect Annotations in Multi-Label Classification Data".
        """
        absent, present = self.thresholds
        labels, scores = self._all()
        found = np.zeros(len(labels), bool)
        for k, (own, score) in enumerate(zip(labels.T == 1, scores.T, strict=True)):
            share = _probability(score)
            found |= ~own & (share >= max(0.5, present[k]))
            found |= own & (share < 0.5) & (1 - share >= absent[k])
        return int(found.sum())

    @property
    def label_errors(self) -> list[LabelError]:
        """Of those, the ones of the largest lead.

        Chosen among ten times as many mistakes of the largest lead.
        """
        found = [suspect for m in self._suspects.best() if (suspect := self._doubted(m))]
        ordered = sorted(found, key=lambda suspect: (-suspect.lead, suspect.mistake.image))
        return ordered[: self.examples]

    def _doubted(self, mistake: Mistake) -> LabelError | None:
        absent, present = self.thresholds
        lacking = tuple(told for told in mistake.false_positives if told[1] >= present[told[0]])
        doubtful = tuple(
            told for told in mistake.false_negatives if 1 - told[1] >= absent[told[0]]
        )
        return LabelError(mistake, lacking, doubtful) if lacking or doubtful else None


def _probability(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The logistic function, without overflow."""
    shares: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -scores.astype(np.float64)))
    return shares


def _losses(scores: npt.NDArray[Any], label: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[n]: binary cross-entropy, nats, the mean over the classes, as in `train/metrics`."""
    each = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = (np.logaddexp(0.0, each) - each * label).mean(axis=1)
    return found


def _best_rank(scores: npt.NDArray[Any], label: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[n]: classes before the first of the image's own, or all; ties as in `train/metrics`."""
    known = np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    own = np.take_along_axis(label, np.argsort(-known, axis=1, kind="stable"), axis=1)
    found: npt.NDArray[np.int64] = np.where(own.any(axis=1), own.argmax(axis=1), label.shape[1])
    return found


def _told(share: npt.NDArray[Any], which: npt.NDArray[Any]) -> tuple[Told, ...]:
    """Some classes of an image, the likeliest first."""
    some = [(int(k), float(share[k])) for k in np.flatnonzero(which)]
    return tuple(sorted(some, key=lambda told: (-told[1], told[0])))
