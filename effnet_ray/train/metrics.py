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
    """Sums over images: loss, top-1 and top-5 hits, weight (readable images), and all images."""

    sums: Tensor
    """[5] float64: loss, top1, top5, weight, images."""

    @classmethod
    def zero(cls, device: torch.device | None = None) -> Self:
        """No images yet."""
        return cls(torch.zeros(5, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, logits: Tensor, label: Tensor, weight: Tensor) -> Self:
        """The tally of some images: logits [B, K], label [B] int64, weight [B], 0 or 1."""
        logits = logits.detach().float()
        loss = F.cross_entropy(logits, label, reduction="none")
        rank = _rank(logits, label)
        columns = [loss, rank < 1, rank < 5, torch.ones_like(loss)]
        kept = [(column.double() * weight).sum() for column in columns]
        return cls(torch.stack([*kept, torch.full_like(kept[0], len(label))]))

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
        return int(self.sums[4] - self.sums[3])

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


def epoch_report(epoch: int, step: int, train: Tally, evaluated: Tally) -> EpochReport:
    """The report of an epoch from its two tallies (over all workers)."""
    return EpochReport(
        epoch=epoch,
        step=step,
        train_loss=train.loss,
        train_top1=train.top1,
        train_images=train.images,
        eval_loss=evaluated.loss,
        eval_top1=evaluated.top1,
        eval_top5=evaluated.top5,
        eval_images=evaluated.images,
        quarantined=train.quarantined + evaluated.quarantined,
    )
