"""What the loop works on: a lane's images, and all that must survive a restart."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from effnet_ray.model.network import Network
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.loss_scale import LossScale
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.per_class import ClassMetrics


@dataclass(frozen=True, slots=True)
class Batch:
    """One lane's images of one step, or some images to evaluate, on the worker's device."""

    image: Tensor
    """[B, 3, R, R] uint8, channels last in memory; or features [B, F] of a frozen backbone."""
    label: Tensor
    """[B] int64; or [B, K] uint8 of 0 and 1, where images may have several classes."""
    weight: Tensor
    """[B] float32: 1, or 0 for a quarantined image."""
    lane: int = 0
    """Which lane of the plan."""

    def part(self, first: int, rows: int) -> "Batch":
        """Some of its images."""
        rest = slice(first, first + rows)
        return Batch(self.image[rest], self.label[rest], self.weight[rest], self.lane)


@dataclass(slots=True)
class TrainState:
    """All that must survive a restart; `checkpoint` writes and reads it."""

    network: Network
    optimizer: Optimizer
    averaged: Network | None = None
    """Moving average of the network (EMA), where the recipe has one."""
    step: int = 0
    """Steps taken, over the whole run."""
    tally: MetricSums = field(default_factory=MetricSums.zero)
    """Sums of the epoch under way, over all workers."""
    history: list[EpochReport] = field(default_factory=list)
    """Reports of the epochs done."""
    per_class: tuple[ClassMetrics, ...] = ()
    """Of the newest evaluation, the weights that were better."""
    device_s: float = 0.0
    """Workers times the seconds that they were held, up to the newest checkpoint."""
    skipped: int = 0
    """Steps just before this one that were not taken, in a row; those that the loss scale was to
    blame for left out."""
    scale: LossScale = field(default_factory=LossScale)
    """Used where the precision is float16."""
    pieces: int = 1
    """Into how many parts a lane's compute is divided, for want of memory; it never falls."""

    @property
    def networks(self) -> list[Network]:
        """What an epoch's end evaluates."""
        return [self.network, *([self.averaged] if self.averaged else [])]
