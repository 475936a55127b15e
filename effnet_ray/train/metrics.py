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
        """The tally of some images: logits [B, K], label [B] int64, weight [B], 0 or 1."""
        logits = logits.detach().float()
        loss = F.cross_entropy(logits, label, reduction="none")
        rank = _rank(logits, label)
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
        """Mean cross-entropy, nats, without label smoothing."""
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


def _rank(logits: Tensor, label: Tensor) -> Tensor:
    """[B]: classes that stand before the label's, 0 for a top-1 hit.

    Ties go to the lower class and NaN stands above all, as in `argmax`: a network that says the
    same of every class must not be right about every image.
    """
    logits = logits.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    truth = logits.gather(1, label[:, None])
    lower = torch.arange(logits.shape[1], device=label.device) < label[:, None]
    return ((logits > truth) | ((logits == truth) & lower)).sum(1)


def epoch_report(
    epoch: int,
    step: int,
    train: Tally,
    evaluated: Tally | None = None,
    averaged: Tally | None = None,
) -> EpochReport:
    """The report of an epoch from its tallies (over all workers), evaluated or not.

    Of the network's evaluation and its average's, the better one's figures: higher top-1, then
    lower loss.
    """
    better = evaluated
    if averaged and evaluated:
        wins = (averaged.top1, -averaged.loss) > (evaluated.top1, -evaluated.loss)
        better = averaged if wins else evaluated
    return EpochReport(
        epoch=epoch,
        step=step,
        train_loss=train.loss,
        train_top1=train.top1,
        train_images=train.images,
        eval_loss=better.loss if better else None,
        eval_top1=better.top1 if better else None,
        eval_top5=better.top5 if better else None,
        eval_images=better.images if better else 0,
        quarantined=train.quarantined + (evaluated.quarantined if evaluated else 0),
        skipped=train.skipped_steps,
        averaged=better is not None and better is averaged,
    )
