"""Metrics as sums: added over lanes, steps and workers, and divided once, at the end.

Average precision is the exception: it needs the scores of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.train.average_precision import average_precisions
from effnet_ray.train.class_metrics import ClassMetrics, class_metrics
from effnet_ray.train.collectives import gather_rows, sum_over_workers
from effnet_ray.train.loss import losses
from effnet_ray.train.metric_definitions import HIT_METRICS, Metric

_WEIGHT, _IMAGES, _SKIPPED_IMAGES, _SKIPPED_STEPS = range(-4, 0)
"""Places in `MetricSums.sums`."""


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Sums of metrics over images, and the number of skipped steps."""

    sums: Tensor
    """[M + 5] float64: loss, hits of each of the M `HIT_METRICS`, weight (images that they cover),
    images, images of skipped steps, skipped steps."""

    @classmethod
    def zero(cls, device: torch.device | None = None) -> Self:
        """Sums over no images."""
        return cls(torch.zeros(len(HIT_METRICS) + 5, dtype=torch.float64, device=device))

    @classmethod
    def from_list(cls, sums: Sequence[float]) -> Self:
        """Sums from a checkpoint. A metric that is newer than the checkpoint has no hits yet."""
        new_metrics = len(HIT_METRICS) + 5 - len(sums)
        values = [*sums[:_WEIGHT], *[0.0] * new_metrics, *sums[_WEIGHT:]]
        return cls(torch.tensor(values, dtype=torch.float64))

    @classmethod
    def of(cls, logits: Tensor, label: Tensor, weight: Tensor) -> Self:
        """Sums over some images: logits [B, K], weight [B] of 0 or 1.

        Labels are [B] int64, or [B, K] of 0 and 1; any label of an image is then a hit.
        """
        logits = logits.detach().float()
        loss = losses(logits, label)
        rank = label_rank(logits, label) if label.ndim == 1 else first_label_rank(logits, label)
        hits = [rank < metric.top for metric in HIT_METRICS]
        columns = [loss, *hits, torch.ones_like(loss)]
        weighted = [(column.double() * weight).sum() for column in columns]
        zero = torch.zeros_like(weighted[0])
        images = torch.full_like(zero, len(label))
        return cls(torch.stack([*weighted, images, zero, zero]))

    def if_finite(self, finite: Tensor) -> Self:
        """These sums if `finite` ([] bool) is true, else those of a skipped step.

        A skipped step has the same images, but no loss and no hits.
        """
        skipped = torch.zeros_like(self.sums)
        skipped[_IMAGES], skipped[_SKIPPED_IMAGES] = self.sums[_IMAGES], self.sums[_WEIGHT]
        skipped[_SKIPPED_STEPS].fill_(1)
        return type(self)(torch.where(finite, self.sums, skipped))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.sums + other.sums)

    def over_workers(self) -> Self:
        """The sum over all workers; a collective, which every worker calls."""
        return type(self)(sum_over_workers(self.sums.clone()))

    @property
    def loss(self) -> float:
        """Mean of `losses`, without label smoothing."""
        return self._mean(0)

    def share(self, metric: Metric) -> float:
        """One of the `HIT_METRICS`, 0 to 1."""
        return self._mean(1 + HIT_METRICS.index(metric))

    @property
    def images(self) -> int:
        """Number of images, quarantined ones included."""
        return int(self.sums[_IMAGES])

    @property
    def quarantined(self) -> int:
        """Number of images that could not be read."""
        return self.images - int(self.sums[_WEIGHT] + self.sums[_SKIPPED_IMAGES])

    @property
    def skipped_steps(self) -> int:
        """Number of steps without an update."""
        return int(self.sums[_SKIPPED_STEPS])

    def _mean(self, index: int) -> float:
        return float(self.sums[index] / self.sums[_WEIGHT].clamp(min=1))


def label_rank(logits: Tensor, label: Tensor) -> Tensor:
    """[B]: number of classes ranked before the label's; 0 for a top-1 hit.

    Ties go to the lower class and NaN ranks first, as in `argmax`: a network with equal scores
    for every class must not be correct on every image.
    """
    logits = _nan_as_infinity(logits)
    label_logit = logits.gather(1, label[:, None])
    lower = torch.arange(logits.shape[1], device=label.device) < label[:, None]
    return ((logits > label_logit) | ((logits == label_logit) & lower)).sum(1)


def first_label_rank(logits: Tensor, label: Tensor) -> Tensor:
    """[B]: number of classes ranked before an image's first label; K for one without labels.

    Ties and NaN as in `label_rank`.
    """
    order = _nan_as_infinity(logits).sort(dim=1, descending=True, stable=True).indices
    ranked_labels = label.gather(1, order)
    unlabelled = ranked_labels.sum(1) == 0
    return ranked_labels.argmax(1).masked_fill(unlabelled, label.shape[1])


def _nan_as_infinity(logits: Tensor) -> Tensor:
    """NaN compares as the highest score: otherwise it would pass for the lowest."""
    return logits.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


class ClassCounts:
    """Labelled, predicted and correct images of each class."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._sums = torch.zeros(3, classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, label: Tensor, weight: Tensor) -> None:
        """Count some images, in the format of `MetricSums.of`.

        An image is predicted as its highest-scoring class; with several labels per image, as
        every class with a probability of at least 0.5.
        """
        if label.ndim == 1:
            predicted = _one_hot(_nan_as_infinity(logits).argmax(1), logits.shape[1])
            labelled = _one_hot(label, logits.shape[1])
        else:
            predicted, labelled = logits >= 0, label > 0
        counts = torch.stack([labelled, predicted, labelled & predicted])
        self._sums += (counts * weight[:, None]).sum(1, dtype=torch.float64)

    def over_workers(self) -> tuple[ClassMetrics, ...]:
        """Metrics of each class over all workers; a collective, which every worker calls."""
        return class_metrics(sum_over_workers(self._sums.clone()).T.long().tolist())


def _one_hot(label: Tensor, classes: int) -> Tensor:
    """[B, K] bool from labels [B]."""
    return F.one_hot(label, classes).bool()


class ScoreCollector:
    """Scores of a worker's eval images, for average precision; 5 bytes per image and class."""

    def __init__(self, classes: int, device: torch.device) -> None:
        # A worker without images takes part in the collective with empty tensors.
        self._scores = [torch.empty(0, classes, device=device)]
        self._labels = [torch.empty(0, classes, dtype=torch.uint8, device=device)]

    def add(self, logits: Tensor, label: Tensor, weight: Tensor) -> None:
        """Add images: logits [B, K], label [B, K] of 0 and 1; images of weight 0 are left out."""
        readable = weight > 0
        self._scores.append(logits.float()[readable])
        self._labels.append(label[readable].to(torch.uint8))  # one type on every worker

    def over_workers(self) -> tuple[float | None, ...]:
        """Average precision of each class over all workers; a collective. Equal on every worker.

        See `average_precisions`.
        """
        scores = gather_rows(torch.cat(self._scores)).cpu().numpy()
        labels = gather_rows(torch.cat(self._labels)).cpu().numpy()
        return average_precisions(labels, scores)
