"""Metrics are sums, added over lanes, steps and workers, and divided once, at the end."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.train.reports import EpochReport


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The element-wise sum over all workers, in place; the tensor itself when there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@dataclass(frozen=True, slots=True)
class Tally:
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
    logits = logits.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    truth = logits.gather(1, label[:, None])
    lower = torch.arange(logits.shape[1], device=label.device) < label[:, None]
    return ((logits > truth) | ((logits == truth) & lower)).sum(1)


def _best_rank(logits: Tensor, label: Tensor) -> Tensor:
    """[B]: classes that stand before the first of the image's own; all of them where it has none.

    Ties and NaN as in `_rank`.
    """
    logits = logits.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    own = label.gather(1, order)
    none = own.sum(1) == 0
    return own.argmax(1).masked_fill(none, label.shape[1])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a network is worth, over all workers' eval images."""

    tally: Tally
    mean_ap: float | None = None
    """Where images may have several classes: see `Ranking`."""

    @property
    def better_first(self) -> tuple[float, float]:
        """Sorts evaluations: mean average precision or top-1, then the loss."""
        score = self.tally.top1 if self.mean_ap is None else self.mean_ap
        return -score, self.tally.loss


def epoch_report(
    epoch: int,
    step: int,
    train: Tally,
    evaluated: Evaluation | None = None,
    averaged: Evaluation | None = None,
) -> EpochReport:
    """The report of an epoch from its tallies (over all workers), evaluated or not.

    Of the network's evaluation and its average's, the better one's figures.
    """
    chosen = evaluated
    if averaged and evaluated:
        wins = averaged.better_first < evaluated.better_first
        chosen = averaged if wins else evaluated
    better = chosen.tally if chosen else None
    return EpochReport(
        epoch=epoch,
        step=step,
        train_loss=train.loss,
        train_top1=train.top1,
        train_images=train.images,
        eval_loss=better.loss if better else None,
        eval_top1=better.top1 if better else None,
        eval_top5=better.top5 if better else None,
        eval_map=chosen.mean_ap if chosen else None,
        eval_images=better.images if better else 0,
        quarantined=train.quarantined + (evaluated.tally.quarantined if evaluated else 0),
        skipped=train.skipped_steps,
        averaged=chosen is not None and chosen is averaged,
    )
