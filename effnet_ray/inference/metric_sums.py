"""Evaluation metrics as sums over images, and the few images with the largest errors.

Every sum is float64 and grows by one image at a time, in the order of the split. The metrics are
therefore the same however the images were batched or distributed over workers.

A metric by groups of images, such as by patient, also needs the group of every image:
`packing.shards` writes it as a column, `data.row_group` reads it, and `inference.eval_inputs`
passes it on beside `image` and `path`. `data.row_group` refuses columns that it does not know.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from effnet_ray.inference.logits import PLAIN
from effnet_ray.release_format.calibration import Calibration
from effnet_ray.train.class_metrics import ClassMetrics, macro_f1
from effnet_ray.train.metric_definitions import EVAL_LOSS, HIT_METRICS, Metric

BINS = 15
"""Bins of the reliability diagram: Guo et al. 2017, §4.1 and tables."""
CANDIDATES = 10
"""Ten times as many mistakes are kept as label errors are shown, because which mistakes qualify is
known only at the end."""

ScoredImages = dict[str, npt.NDArray[Any]]
"""Columns [n, …] about some images. Always present: `image` (id), `path`, `error` (why the image
could not be read, or empty), `wrong` (whether the prediction differs from the label), `thumbnail`
(JPEG as base64, or empty), `map` (the view with an activation map, likewise). `unknown` (see
`model.references`) if the release has references. The others are those of `score_images` in
`multiclass` and `multilabel`."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The predictions whose probability is in one interval (low, high]."""

    low: float
    high: float
    count: int
    probability: float
    """Mean probability; 0 in an empty bin."""
    accuracy: float
    """Share of correct predictions; 0 in an empty bin."""


class ReliabilityCounts:
    """Counts correct predictions by their probability, in 15 bins of equal width."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))  # count, probability, correct

    def add(self, probability: npt.NDArray[Any], correct: npt.NDArray[Any]) -> None:
        """Add predictions [n]: their probabilities, and whether they are correct."""
        bins = np.nan_to_num(np.ceil(probability * BINS) - 1).clip(0, BINS - 1).astype(np.int64)
        columns = (np.ones_like(probability), probability, correct)
        for sums, values in zip(self._sums, columns, strict=True):
            np.add.at(sums, bins, values)  # unbuffered: adds one by one

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram."""
        return tuple(
            Bin(
                low=index / BINS,
                high=(index + 1) / BINS,
                count=int(count),
                probability=probability / max(1, count),
                accuracy=correct / max(1, count),
            )
            for index, (count, probability, correct) in enumerate(self._sums.T.tolist())
        )

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: mean of |accuracy − probability|, by counts."""
        gaps = (bin_.count * abs(bin_.accuracy - bin_.probability) for bin_ in self.bins)
        return math.fsum(gaps) / max(1, sum(bin_.count for bin_ in self.bins))


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake(ABC):
    """An image whose prediction differs from its label."""

    image: int
    """The image's id."""
    path: str
    """Path in the source that was packed."""
    loss: float
    """The image's loss, nats."""
    thumbnail: str
    """A JPEG as base64; empty if none was requested."""
    map: str = ""
    """The network's view with the activation map of the explained class, as a JPEG in base64;
    empty if no thumbnail was requested."""

    @property
    @abstractmethod
    def margin(self) -> float:
        """How much more probable the prediction is than the label, 0 to 1."""

    @property
    def doubt(self) -> float:
        """Probability that the label is wrong, by the model, 0 to 1."""
        return self.margin


M = TypeVar("M", bound=Mistake)
E = TypeVar("E", bound=Mistake)


class EvalMetrics(ABC, Generic[M, E]):
    """The metrics that multiclass and multilabel evaluation share.

    M: a mistake; E: a mistake that is a suspected label error.
    """

    def __init__(
        self,
        classes: int,
        examples: int = 24,
        mistakes: int = 0,
        calibration: Calibration = PLAIN,
    ) -> None:
        """How many mistakes to keep, and how the release makes its probabilities.

        `examples`: of the worst ones, and of suspected label errors; `mistakes`: of the most
        doubtful ones.
        """
        self.classes = classes
        self.examples = examples
        self.processed = 0
        """Number of images, including unreadable ones."""
        self.unreadable: dict[int, tuple[str, str]] = {}
        """Images that could not be read: id → (path, reason)."""
        self.calibration = calibration
        self._reliability = ReliabilityCounts()
        self._plain_reliability = ReliabilityCounts()
        self._sums = np.zeros(1 + len(HIT_METRICS))  # loss, hits
        self._unknown: list[npt.NDArray[np.float32]] = []
        self._hits: list[npt.NDArray[np.bool_]] = []
        self._worst = TopK[M](examples)
        self._candidates = TopK[M](CANDIDATES * examples)
        self._doubtful = TopK[M](mistakes)

    @abstractmethod
    def add(self, scored: ScoredImages) -> None:
        """Add some images, the next ones of the split."""

    @property
    @abstractmethod
    def per_class(self) -> Sequence[ClassMetrics]:
        """All classes, in their own order."""

    @property
    @abstractmethod
    def worst_classes(self) -> Sequence[ClassMetrics]:
        """The classes of `present`, the worst first."""

    @property
    @abstractmethod
    def label_error_count(self) -> int:
        """Number of images with a suspected label error, by confident learning.

        Source: Northcutt et al. 2021 (JAIR 70), eq. 1 and 2.
        """

    @abstractmethod
    def _as_label_error(self, mistake: M) -> E | None:
        """The suspected label error in a mistake, if there is one."""

    @property
    def present(self) -> list[ClassMetrics]:
        """Classes with images or predictions."""
        return [row for row in self.per_class if row.support or row.predicted]

    @property
    def worst_mistakes(self) -> list[M]:
        """The mistakes with the highest loss, the highest first."""
        return self._worst.best()

    @property
    def doubtful(self) -> list[M]:
        """The mistakes whose labels are most probably wrong, the most probable first."""
        return self._doubtful.best()

    @property
    def label_errors(self) -> list[E]:
        """The suspected label errors with the largest margin, the largest first.

        Ranked by normalized margin (Northcutt et al. 2021, §3.2), among the mistakes of the
        largest margin: ten times as many as are returned.
        """
        errors = [
            error
            for mistake in self._candidates.best()
            if (error := self._as_label_error(mistake)) is not None
        ]
        return sorted(errors, key=lambda error: (-error.margin, error.image))[: self.examples]

    def _count_images(self, scored: ScoredImages) -> npt.NDArray[np.bool_]:
        """Count images as processed and record the unreadable ones; [n] whether readable."""
        readable: npt.NDArray[np.bool_] = scored["error"] == ""
        self.processed += len(readable)
        for image, path, error in rows(scored, ~readable, "image", "path", "error"):
            self.unreadable[image] = path, error
        if "unknown" in scored:
            self._unknown.append(scored["unknown"][readable].astype(np.float32))
        return readable

    def _add_loss_and_rank(self, loss: npt.NDArray[Any], rank: npt.NDArray[Any]) -> None:
        """Add losses [n], and hits by the number of classes before the label [n]."""
        self._hits.append(rank < 1)
        columns = np.stack([loss, *(rank < metric.top for metric in HIT_METRICS)], 1)
        # Unbuffered, and so image by image: any other batching gives the same sums.
        np.add.at(self._sums, np.tile(np.arange(len(self._sums)), len(loss)), columns.ravel())

    def _add_mistake(self, mistake: M) -> None:
        self._worst.push(mistake.loss, mistake)
        self._candidates.push(mistake.margin, mistake)
        self._doubtful.push(mistake.doubt, mistake)

    @property
    def images(self) -> int:
        """Number of readable images: the denominator of every share."""
        return self.processed - len(self.unreadable)

    @property
    def loss(self) -> float:
        """Mean loss, nats: cross-entropy; with several labels per image binary cross-entropy."""
        return self._mean(0)

    def share(self, metric: Metric) -> float:
        """One of the `HIT_METRICS`, 0 to 1: images with a label among their highest scores."""
        return self._mean(1 + HIT_METRICS.index(metric))

    @property
    def scores(self) -> dict[Metric, float]:
        """The `EVAL_METRICS` that images of this kind have, and their values."""
        return {**{metric: self.share(metric) for metric in HIT_METRICS}, EVAL_LOSS: self.loss}

    def _mean(self, index: int) -> float:
        return float(self._sums[index] / max(1, self.images))

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether each readable image's highest score is that of a label, in the order of the
        split."""
        return np.concatenate([np.empty(0, bool), *self._hits])

    @property
    def unknown_scores(self) -> npt.NDArray[np.float32]:
        """How unlike the release's images each readable image is, in the order of the split; empty
        if the release has no references."""
        return np.concatenate([np.empty(0, np.float32), *self._unknown])

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram of the predictions that `ece` counts."""
        return self._reliability.bins

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1.

        Multiclass: the error of the confidence, over images (Guo et al. 2017, "On Calibration of
        Modern Neural Networks", eq. 3). Multilabel: the error of the probability of each class,
        over images and classes (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using
        Bayesian Binning").
        """
        return self._reliability.error

    @property
    def plain_ece(self) -> float:
        """`ece` of the probabilities of the plain logits, as if nothing was calibrated."""
        return self._plain_reliability.error

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images."""
        return macro_f1(self.per_class)


def rows(
    scored: ScoredImages, mask: npt.NDArray[np.bool_], *columns: str
) -> Iterable[Sequence[Any]]:
    """Values of these columns for each image in `mask`."""
    return zip(*(scored[name][mask].tolist() for name in columns), strict=True)


class TopK(Generic[M]):
    """Keeps the `k` mistakes with the highest scores; of equal scores the lower image id."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._heap: list[tuple[float, int, M]] = []

    def push(self, score: float, mistake: M) -> None:
        """Keep the mistake while it is among the best."""
        entry = (score, -mistake.image, mistake)
        if len(self._heap) < self._k:
            heapq.heappush(self._heap, entry)
        elif self._k:
            heapq.heappushpop(self._heap, entry)

    def best(self) -> list[M]:
        """The mistakes kept, the highest score first."""
        return [mistake for *_, mistake in sorted(self._heap, key=lambda entry: entry[:2])[::-1]]
