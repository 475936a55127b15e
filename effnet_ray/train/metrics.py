"""Metrics are sums, added over lanes, steps and workers, and divided once, at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.per_class import ClassMetrics, class_metrics


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The element-wise sum over all workers, in place; the tensor itself when there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Sums over images, and how many steps were skipped."""

    sums: Tensor
    """[7] float64: loss, top1, top5, weight (images that these are of), images, images of skipped
    steps, skipped steps."""

    @classmethod
    def zero(cls, device: torch.device | None = None) -> Self:
        """No images yet."""
        return cls(torch.zeros(7, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, logits: Tensor, label: Tensor, weight: Tensor) -> Self:
        """The tally of some images: logits [B, K], weight [B], 0 or 1.

        Label: [B] int64; or [B, K] of 0 and 1, and a hit is any of an image's own classes.
        """
        logits = logits.detach().float()
        loss = losses(logits, label)
        rank = _rank(logits, label) if label.ndim == 1 else _best_rank(logits, label)
        columns = [loss, rank < 1, rank < 5, torch.ones_like(loss)]
        kept = [(column.double() * weight).sum() for column in columns]
        nothing = torch.zeros_like(kept[0])
        return cls(torch.stack([*kept, torch.full_like(kept[0], len(label)), nothing, nothing]))

    def skipped(self) -> Self:
        """The same images, seen in a step that was not taken: no loss and no hits."""
        sums = torch.zeros_like(self.sums)
        sums[4], sums[5], sums[6] = self.sums[4], self.sums[3], 1
        return type(self)(sums)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.sums + other.sums)

    def over_workers(self) -> Self:
        """The sum over all workers; called by every one of them."""
        return type(self)(sum_over_workers(self.sums.clone()))

    @property
    def loss(self) -> float:
        """Mean of `losses`, without label smoothing."""
        return self._mean(0)

    @property
    def top1(self) -> float:
        """Share of images whose highest score is the label's, 0 to 1."""
        return self._mean(1)

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five highest scores, 0 to 1."""
        return self._mean(2)

    @property
    def images(self) -> int:
        """Images seen, the quarantined ones included."""
        return int(self.sums[4])

    @property
    def quarantined(self) -> int:
        """Images seen that could not be read."""
        return int(self.sums[4] - self.sums[3] - self.sums[5])

    @property
    def skipped_steps(self) -> int:
        """Steps that were not taken."""
        return int(self.sums[6])

    def _mean(self, index: int) -> float:
        return float(self.sums[index] / self.sums[3].clamp(min=1))


def losses(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """[B]: cross-entropy in nats of logits [B, K] and labels [B].

    Of labels [B, K] of 0 and 1: binary cross-entropy, the mean over the classes. `smoothing` is
    then spread as in timm's `BinaryCrossEntropy`.
    """
    if label.ndim == 1:
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    target = label.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def _rank(logits: Tensor, label: Tensor) -> Tensor:
    """[B]: classes that stand before the label's, 0 for a top-1 hit.

    Ties go to the lower class and NaN stands above all, as in `argmax`: a network that says the
    same of every class must not be right about every image.
    """
    logits = _comparable(logits)
    truth = logits.gather(1, label[:, None])
    lower = torch.arange(logits.shape[1], device=label.device) < label[:, None]
    return ((logits > truth) | ((logits == truth) & lower)).sum(1)


def _best_rank(logits: Tensor, label: Tensor) -> Tensor:
    """[B]: classes that stand before the first of the image's own; all of them where it has none.

    Ties and NaN as in `_rank`.
    """
    order = _comparable(logits).sort(dim=1, descending=True, stable=True).indices
    own = label.gather(1, order)
    none = own.sum(1) == 0
    return own.argmax(1).masked_fill(none, label.shape[1])


def _comparable(logits: Tensor) -> Tensor:
    """NaN above all: else a network that says nothing would pass for one that says little."""
    return logits.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


class ClassCounts:
    """Images of each class, images taken for it, and those of both; 3 numbers for each class."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._sums = torch.zeros(3, classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, label: Tensor, weight: Tensor) -> None:
        """Some images, as of `Tally.of`.

        An image is taken for the class with the highest score, or, where it may have several, for
        those of a probability of 0.5 or more.
        """
        if label.ndim == 1:
            said = _one_hot(_comparable(logits).argmax(1), logits.shape[1])
            own = _one_hot(label, logits.shape[1])
        else:
            said, own = logits >= 0, label > 0
        counts = torch.stack([own, said, own & said])
        self._sums += (counts * weight[:, None]).sum(1, dtype=torch.float64)

    def over_workers(self) -> tuple[ClassMetrics, ...]:
        """Of all workers; called by every one of them."""
        return class_metrics(sum_over_workers(self._sums.clone()).T.long().tolist())


def _one_hot(label: Tensor, classes: int) -> Tensor:
    """[B, K] bool of [B]."""
    return F.one_hot(label, classes).bool()


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What a network is worth, over all workers' eval images."""

    tally: MetricSums
    mean_ap: float | None = None
    """Where images may have several classes: see `Ranking`."""
    per_class: tuple[ClassMetrics, ...] = ()

    @property
    def better_first(self) -> tuple[float, float]:
        """Sorts evaluations: mean average precision or top-1, then the loss."""
        score = self.tally.top1 if self.mean_ap is None else self.mean_ap
        return -score, self.tally.loss


def better(found: Sequence[EvalResult]) -> EvalResult:
    """The one whose weights are to be released; of equal ones the first."""
    return min(found, key=lambda each: each.better_first)


def epoch_report(
    epoch: int,
    step: int,
    train: MetricSums,
    *evaluated: EvalResult,
) -> EpochReport:
    """The report of an epoch from its tallies (over all workers), evaluated or not.

    `evaluated` are of the network and its average, if any: the better one's figures are told.
    """
    chosen = better(evaluated) if evaluated else None
    tally = chosen.tally if chosen else None
    return EpochReport(
        epoch=epoch,
        step=step,
        train_loss=train.loss,
        train_top1=train.top1,
        train_images=train.images,
        eval_loss=tally.loss if tally else None,
        eval_top1=tally.top1 if tally else None,
        eval_top5=tally.top5 if tally else None,
        eval_map=chosen.mean_ap if chosen else None,
        eval_images=tally.images if tally else 0,
        quarantined=train.quarantined + (tally.quarantined if tally else 0),
        skipped=train.skipped_steps,
        averaged=chosen is not None and chosen is not evaluated[0],
    )
