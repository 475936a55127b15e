"""One optimizer update over a global batch, which consists of lanes. Plain torch.

Each worker computes its lanes in one or more passes. Every random draw is seeded by (seed, step,
lane), and sums of losses are divided by the global number of images. So a recipe takes the same
steps on any number of workers.

Nothing in a step asks the device for a number, so Python may be a step ahead of a GPU: whether a
step is finite is decided there, and `train.skipped_steps` reads it one step late.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from effnet_ray.data.stream import Lane
from effnet_ray.model.batchnorm import RunningStatistics, batchnorms
from effnet_ray.model.compile import Compiled
from effnet_ray.model.ema import MovingAverage
from effnet_ray.model.network import Network, set_trainable, train_mode
from effnet_ray.model.optimizer import begin_phase, set_learning_rate, take_step
from effnet_ray.phases import Phase
from effnet_ray.recipe import MULTILABEL, SYNC, Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.collectives import group_size, sum_over_workers
from effnet_ray.train.draws import Draws
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.mixup import MixedImages
from effnet_ray.train.state import TrainState


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """What every worker knows of the global batch before a step."""

    images: int
    readable: int
    """Images of weight 1."""
    stop: bool
    """Whether any worker asks to stop before this step."""


class PhaseTrainer:
    """A worker's model in one phase: the network in DDP, and all that a step needs."""

    def __init__(
        self,
        state: TrainState,
        recipe: Recipe,
        phase: Phase,
        loss: TrainLoss | None = None,
    ) -> None:
        """`loss`: by default the recipe's, without class weights."""
        self.loss = loss or TrainLoss.of(recipe, ())
        self.state, self.recipe = state, recipe
        self.network, self.optimizer = state.network, state.optimizer
        self.phase = phase
        self.trainable = set_trainable(state.network, recipe, phase.lowest_trainable)
        begin_phase(state.optimizer)
        self.device = next(state.network.parameters()).device
        self.workers = group_size()
        self.model: nn.Module = state.network
        if recipe.compile and not phase.frozen:  # a head is small, and its features run eagerly
            self.model = Compiled(state.network, recipe.micro_batch or 0)
        if self.workers > 1:
            # RunningStatistics keeps BatchNorm's buffers equal, not DDP's broadcasts.
            self.model = DistributedDataParallel(
                self.model, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
            if recipe.gradients == "bfloat16":
                self.model.register_comm_hook(None, bf16_compress_hook)
        train_mode(state.network, recipe, phase.lowest_trainable)
        updating = [layer for layer in batchnorms(state.network) if layer.training]
        self.running_statistics = RunningStatistics(updating) if updating else None
        self.moving_average = (
            MovingAverage(state.averaged, state.network, recipe.ema_decay)
            if state.averaged
            else None
        )

    @property
    def uses_loss_scale(self) -> bool:
        """Whether the loss is scaled: in float16."""
        return self.recipe.precision == "float16"

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to the recipe's precision."""
        if self.recipe.precision == "float32":
            return nullcontext()
        dtype = torch.float16 if self.uses_loss_scale else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype)

    def unscaled_gradients(self) -> list[Tensor]:
        """The step's gradients, divided by the loss scale in place."""
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        if self.uses_loss_scale:
            torch._foreach_mul_(gradients, 1 / self.state.scale.factor)
        return gradients

    def sync_step(self, batch: Batch, stop: bool = False) -> GlobalBatch:
        """Add up this worker's batch with those of all others.

        A collective of the CPU, which every worker calls before a step.
        """
        counts = torch.tensor([len(batch.label), batch.readable, int(stop)])
        images, readable, stops = sum_over_workers(counts).tolist()
        return GlobalBatch(images, readable, bool(stops))

    def loss_factor(self, images: int) -> Tensor | float:
        """Factor on the sum of this worker's losses: 1 / `images`, times the loss scale."""
        factor = self.workers / max(1, images)  # DDP averages over workers
        return factor * self.state.scale.factor if self.uses_loss_scale else factor

    def gradient_sync(self, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients over workers only in the `last` backward pass of a step."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    @property
    def pass_size(self) -> int:
        """Maximum number of images computed at once, unless BatchNorm trains."""
        return self.state.pass_size or self.recipe.micro_batch or 1

    def passes(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """First image and number of images of each forward and backward pass over a batch.

        Where BatchNorm trains, a pass is a lane, over which it computes its statistics.
        """
        images = len(batch.label)
        if self.running_statistics:
            first = 0
            for lane in batch.lanes:
                if lane.rows or images == 0:
                    yield first, lane.rows
                first += lane.rows
        else:
            for first in range(0, images, self.pass_size):
                yield first, min(self.pass_size, images - first)

    def padding(self, images: int = 2) -> Batch:
        """Images of weight 0, in lanes, for a worker without any: DDP needs its backward pass."""
        if self.phase.frozen and self.recipe.head_cache:
            width = self.network.num_features
            image = torch.zeros(images, width, dtype=torch.float16, device=self.device)
        else:
            size = self.recipe.image_size or 0
            image = torch.zeros(images, size, size, 3, dtype=torch.uint8, device=self.device)
            image = image.permute(0, 3, 1, 2)
        label = torch.zeros(images, dtype=torch.int64, device=self.device)
        if self.recipe.task == MULTILABEL:
            label = label[:, None].expand(images, self.network.num_classes)
        weight = torch.zeros(images, device=self.device)
        size = max(1, self.recipe.micro_batch or 1)
        rows = [min(size, images - first) for first in range(0, images, size)] or [0]
        return Batch(image, label, weight, tuple(Lane(-1, count) for count in rows))

    def augment(self, draws: Draws, batch: Batch) -> MixedImages:
        """The images after erasing and mixing; unchanged while the backbone is frozen."""
        if self.phase.frozen:
            return MixedImages(batch.image, batch.weight)
        return draws.augment(self.recipe, batch, *self.network.noise)

    def warm_up(self) -> None:
        """Run one pass of weight 0, so that DDP's buckets are final before the first step.

        DDP rebuilds its buckets after the first backward pass. Without this, a resumed run would
        add up its first step's gradients in another order than the original run (3 workers).
        """
        train_mode(self.network, self.recipe, self.phase.lowest_trainable)
        accumulate_gradients(self, self.padding(), 0, 1)
        self.optimizer.zero_grad()


def train_step(trainer: PhaseTrainer, batch: Batch, images: int, rate: float) -> MetricSums:
    """Take one optimizer step and return the global batch's sums, over all workers.

    `images` is the global number of readable images. If loss or gradient is not finite, the step
    counts but changes nothing: then `TrainState.skipped` is higher, or in float16 the loss scale
    is lower, and while that can fall, such steps do not count as skipped.
    """
    state, step, statistics = trainer.state, trainer.state.step, trainer.running_statistics
    if not len(batch.label):
        # SyncBatchNorm must not include images that do not exist.
        batch = trainer.padding(0 if trainer.recipe.batchnorm == SYNC and statistics else 2)
    sums = accumulate_gradients(trainer, batch, step, images).over_workers()
    norm = nn.utils.get_total_norm(trainer.unscaled_gradients())
    finite = torch.isfinite(sums.sums[0] + norm)  # the same on every worker
    skips = ~(finite | state.scale.can_decrease) if trainer.uses_loss_scale else ~finite
    state.skipped = (state.skipped + skips) * ~finite
    if trainer.uses_loss_scale:
        state.scale = state.scale.after(finite)
    set_learning_rate(trainer.optimizer, rate)
    if trainer.recipe.clip_grad:
        nn.utils.clip_grads_with_norm_(trainer.trainable, trainer.recipe.clip_grad, norm)
    take_step(trainer.optimizer, finite)
    trainer.optimizer.zero_grad()
    if statistics:
        statistics.undo_step(unless=finite)
    if trainer.moving_average:
        trainer.moving_average.update(step, finite)
    return sums.if_finite(finite)


@torch.no_grad()
def measure_step(trainer: PhaseTrainer, batch: Batch) -> MetricSums:
    """The global batch's sums, over all workers, of a network that the step does not change."""
    network, sums = trainer.network.eval(), MetricSums.zero(trainer.device)
    for first, rows in trainer.passes(batch):
        part = batch.part(first, rows)
        sums += MetricSums.of(network(part.image), part.label, part.weight)
    return sums.over_workers()


def accumulate_gradients(
    trainer: PhaseTrainer, batch: Batch, step: int, images: int
) -> MetricSums:
    """Add up the gradients of this worker's images, times the loss scale; return their sums.

    `images` is the global number of readable images.
    """
    statistics = trainer.running_statistics
    scale = trainer.loss_factor(images)
    if statistics:
        statistics.begin_step()
    sums = add_gradients(trainer, batch, step, scale=scale)
    if statistics:
        statistics.end_step(sum_over_workers)
    return sums


def add_gradients(
    trainer: PhaseTrainer, batch: Batch, step: int, *, scale: Tensor | float, sync: bool = True
) -> MetricSums:
    """Add up the gradients of a batch's loss times `scale`, pass by pass; return its sums.

    In the last pass DDP reduces the gradients of all workers, if `sync`.
    """
    network, recipe = trainer.network, trainer.recipe
    draws = Draws.of(network, recipe, batch, step, mixes=not trainer.phase.frozen)
    augmented, sums = trainer.augment(draws, batch), MetricSums.zero(trainer.device)
    draws = replace(draws, noise=None)  # as large as the images
    passes = list(trainer.passes(batch))
    for number, (first, rows) in enumerate(passes, 1):
        part, mixed = batch.part(first, rows), augmented.part(first, rows)
        draws.set_masks(network, first, rows)
        with trainer.gradient_sync(last=sync and number == len(passes)):
            # SyncBatchNorm sends statistics of an empty batch in its dtype, others in float32.
            precision = trainer.autocast() if rows else nullcontext()
            with precision, _SingleImageMode(network, part):
                logits = trainer.model(mixed.image)
            loss = trainer.loss(logits.float(), part.target, mixed)
            ((loss * part.weight).sum() * scale).backward()  # type: ignore[no-untyped-call]
        if not batch.is_padding:
            sums += MetricSums.of(logits, part.label, part.weight)
        if trainer.running_statistics:
            trainer.running_statistics.end_lane(0 if batch.is_padding else rows)
    return sums


class _SingleImageMode(AbstractContextManager[None]):
    """Puts BatchNorm into eval mode for a lane of one image with one value per channel.

    At 32 px the last feature maps are 1×1, and a single value has no variance.
    """

    def __init__(self, network: Network, batch: Batch) -> None:
        single = len(batch.label) == 1 and batch.image.ndim == 4 and batch.image.shape[-1] <= 32
        layers = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training)
        self._layers = list(layers) if single else []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.eval()

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.train()
