"""The training loop: plain torch. No Ray, no storage, no clock; those reach it as arguments.

A step is one optimizer update over a global batch, which is a set of lanes. Each worker runs its
own lanes one after the other, every random draw seeded by (seed, step, lane), and losses are sums
divided by the global count: so the same recipe takes the same steps on any number of workers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from effnet_ray.errors import BadImagesError, TrainingError
from effnet_ray.model.network import Network, RunningStatistics, train_mode
from effnet_ray.model.optim import learning_rate, set_learning_rate
from effnet_ray.recipe import Recipe
from effnet_ray.train.metrics import Tally, epoch_report, sum_over_workers
from effnet_ray.train.reports import EpochReport


@dataclass(frozen=True, slots=True)
class Batch:
    """One lane's images of one step, or some images to evaluate, on the worker's device."""

    image: Tensor
    """[B, 3, R, R] uint8, channels last in memory."""
    label: Tensor
    """[B] int64"""
    weight: Tensor
    """[B] float32: 1, or 0 for a quarantined image."""
    lane: int = 0
    """Which lane of the plan."""


@dataclass(slots=True)
class TrainState:
    """All that must survive a restart; `checkpoint` writes and reads it."""

    network: Network
    optimizer: Optimizer
    step: int = 0
    """Steps taken, over the whole run."""
    tally: Tally = field(default_factory=Tally.zero)
    """Sums of the epoch under way, over all workers."""
    history: list[EpochReport] = field(default_factory=list)
    """Reports of the epochs done."""


class Batches(Protocol):
    """Where batches come from: planned, in order, this worker's share."""

    def train(self, step: int) -> Iterator[Sequence[Batch]]:
        """The epoch's steps from `step` (of the epoch) on, each as this worker's lanes."""
        ...

    def eval(self) -> Iterable[Batch]:
        """This worker's share of the eval split."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What the loop must know of the plan."""

    steps_per_epoch: int
    train_images: int
    eval_images: int


def fit(
    state: TrainState,
    recipe: Recipe,
    shape: Shape,
    batches: Batches,
    *,
    max_bad_fraction: float = 1.0,
    on_step: Callable[[TrainState], None],
    on_epoch: Callable[[EpochReport, TrainState], None],
    leave: Callable[[], bool] = lambda: False,
) -> bool:
    """Train from `state.step` to the recipe's end; every worker calls it alike.

    Returns whether it came there. `leave` is asked before every step; where it says yes on any
    worker, all of them stop before that step, so that `state` may be saved as it is.
    `on_step` follows every step, `on_epoch` every evaluation. A state saved by `on_step` after an
    epoch's last step lacks that epoch's evaluation: save it in `on_epoch`. Raises TrainingError
    where the images used are not those planned, or a loss is not finite; BadImagesError where
    more than `max_bad_fraction` of a split are quarantined.
    """
    worker = Worker(state, recipe)
    state.tally = Tally(state.tally.sums.to(worker.device))
    worker.warm_up(recipe.image_size or 0)
    while state.step < recipe.epochs * shape.steps_per_epoch:
        epoch, step = divmod(state.step, shape.steps_per_epoch)
        train_mode(state.network, recipe)
        for lanes in batches.train(step):
            count, leaving = worker.agree(lanes, leave())
            if leaving:
                return False
            rate = learning_rate(recipe, state.step, shape.steps_per_epoch)
            state.tally += train_step(worker, lanes, count, rate, state.step)
            state.step += 1
            _check_bad("train", state.tally, shape.train_images, max_bad_fraction)
            on_step(state)
        evaluated = evaluate(state.network, batches.eval(), worker.autocast)
        _reconcile(epoch, shape, state.tally, evaluated)
        _check_bad("eval", evaluated, shape.eval_images, max_bad_fraction)
        _check_finite(evaluated, f"the evaluation after step {state.step - 1}")
        report = epoch_report(epoch, state.step, state.tally, evaluated)
        state.history.append(report)
        state.tally = Tally.zero(worker.device)
        on_epoch(report, state)
    return True


class Worker:
    """One worker's model: DDP around the network, and what every step needs beside it."""

    def __init__(self, state: TrainState, recipe: Recipe) -> None:
        self.network, self.optimizer, self.recipe = state.network, state.optimizer, recipe
        self.device = next(state.network.parameters()).device
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.model: nn.Module = state.network
        if self.workers > 1:
            # BatchNorm's buffers are kept equal by RunningStatistics, not by broadcasts.
            self.model = DistributedDataParallel(
                state.network, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        trains = recipe.batchnorm == "train"
        self.statistics = RunningStatistics(state.network) if trains else None

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 where the recipe says so."""
        if self.recipe.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def agree(self, lanes: Sequence[Batch], leaving: bool = False) -> tuple[Tensor, bool]:
        """Readable images [1] of the global batch, and whether any worker is leaving."""
        readable = sum(float(lane.weight.sum()) for lane in lanes if len(lane.label))
        mine = torch.tensor([readable, float(leaving)], dtype=torch.float64)
        both = sum_over_workers(mine)
        return both[:1], bool(both[1])

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Keep gradients on this worker until its last lane of the step."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def empty_batch(self, size: int) -> Batch:
        """A lane of weight 0, for a worker that has none: DDP needs its backward pass."""
        image = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=self.device)
        label = torch.zeros(2, dtype=torch.int64, device=self.device)
        weight = torch.zeros(2, device=self.device)
        return Batch(image.to(memory_format=torch.channels_last), label, weight, lane=-1)

    def warm_up(self, size: int) -> None:
        """One pass of weight 0, so that DDP has laid out its buckets before the first step.

        It lays them out anew after its first backward pass; a resumed run would otherwise add
        gradients of its first step in another order than the run it continues (3 workers).
        """
        train_mode(self.network, self.recipe)
        gradients(self, [self.empty_batch(size)], 0, torch.ones(1))
        self.optimizer.zero_grad()


def train_step(
    worker: Worker, lanes: Sequence[Batch], count: Tensor, rate: float, step: int
) -> Tally:
    """One optimizer update. Returns the global batch's tally, over all workers.

    `count` [1]: readable images of the global batch, from `Worker.agree`.
    """
    filled = [lane for lane in lanes if len(lane.label)]
    if not filled:
        filled = [worker.empty_batch(worker.recipe.image_size or 0)]
    tally = gradients(worker, filled, step, count).over_workers()
    _check_finite(tally, f"step {step} (learning rate {rate:.2g})")
    set_learning_rate(worker.optimizer, rate)
    worker.optimizer.step()
    worker.optimizer.zero_grad()
    return tally


def _check_bad(split: str, tally: Tally, images: int, fraction: float) -> None:
    """The tally is the same on every worker, so all of them stop at the same step."""
    allowed = max(1.0, fraction * images) if fraction else 0
    if tally.quarantined > allowed:
        raise BadImagesError(
            f"{tally.quarantined:,} of {images:,} {split} images cannot be read, more than "
            f"--max-bad-fraction {fraction:g} allows"
        )


def _check_finite(tally: Tally, when: str) -> None:
    """The tally is the same on every worker, so all of them stop."""
    if not torch.isfinite(tally.sums[0]):
        raise TrainingError(
            f"the loss is not finite at {when}: lower --lr, or look at the images of that step "
            "with --audit"
        )


def gradients(worker: Worker, lanes: Sequence[Batch], step: int, count: Tensor) -> Tally:
    """Add up the gradients of this worker's lanes. `count` [1]: images of the global batch."""
    recipe, statistics = worker.recipe, worker.statistics
    scale = worker.workers / max(1.0, float(count))  # DDP takes the mean over workers
    tally = Tally.zero(worker.device)
    if statistics:
        statistics.begin_step()
    for index, lane in enumerate(lanes):
        torch.manual_seed(lane_seed(recipe.seed, step, lane.lane))
        with worker.accumulating(last=index == len(lanes) - 1):
            with worker.autocast(), _SingleImageMode(worker.network, lane):
                logits = worker.model(lane.image)
            losses = F.cross_entropy(
                logits.float(), lane.label, reduction="none",
                label_smoothing=recipe.label_smoothing,
            )  # fmt: skip
            ((losses * lane.weight).sum() * scale).backward()  # type: ignore[no-untyped-call]
        if lane.lane >= 0:
            tally += Tally.of(logits, lane.label, lane.weight)
        if statistics:
            statistics.end_lane(len(lane.label) if lane.lane >= 0 else 0)
    if statistics:
        statistics.end_step(sum_over_workers)
    return tally


def lane_seed(seed: int, step: int, lane: int) -> int:
    """Seed of every random draw of a lane in a step: dropout, drop path. 63 bits."""
    state = seed
    for part in (step + 1, lane + 2):  # SplitMix64's finaliser (Steele et al. 2014), chained
        state = (state + part * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


@torch.no_grad()
def evaluate(
    network: Network,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tally:
    """The tally of all workers' batches; every image counts once, divided once."""
    network.eval()
    tally = Tally.zero(next(network.parameters()).device)
    for batch in batches:
        with autocast():
            logits = network(batch.image)
        tally += Tally.of(logits, batch.label, batch.weight)
    return tally.over_workers()


class _SingleImageMode(AbstractContextManager[None]):
    """BatchNorm by its running statistics for a lone image of one value per channel.

    At 32 px the last maps are 1×1, and one value has no variance to normalise by.
    """

    def __init__(self, network: Network, lane: Batch) -> None:
        lone = len(lane.label) == 1 and lane.image.shape[-1] <= 32
        layers = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training)
        self._layers = list(layers) if lone else []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.eval()

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.train()


def _reconcile(epoch: int, shape: Shape, trained: Tally, evaluated: Tally) -> None:
    for name, found, planned in (
        ("train", trained.images, shape.train_images),
        ("eval", evaluated.images, shape.eval_images),
    ):
        if found != planned:
            raise TrainingError(
                f"epoch {epoch} used {found:,} {name} images, the plan has {planned:,}: the data "
                "changed under the run, or this is a defect worth reporting"
            )
