"""One optimizer update over a global batch, which consists of lanes. Plain torch.

Each worker computes its lanes one after the other. Every random draw is seeded by (seed, step,
lane), and sums of losses are divided by the global number of images. So a recipe takes the same
steps on any number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from effnet_ray.errors import NonFiniteError
from effnet_ray.model.batchnorm import RunningStatistics, batchnorms
from effnet_ray.model.compile import Compiled
from effnet_ray.model.ema import MovingAverage
from effnet_ray.model.network import Network, set_trainable, train_mode
from effnet_ray.model.optimizer import begin_phase, set_learning_rate
from effnet_ray.phases import Phase
from effnet_ray.recipe import MULTILABEL, SYNC, Recipe
from effnet_ray.train.collectives import group_size, sum_over_workers
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.mixup import MixedLane, mix_lane
from effnet_ray.train.state import Batch, TrainState


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

    def sync_step(self, lanes: Sequence[Batch], stop: bool = False) -> tuple[Tensor, bool]:
        """Number of readable images [1] of the global batch, and whether any worker asks to stop.

        A collective, which every worker calls before a step.
        """
        readable = sum(float(lane.weight.sum()) for lane in lanes if len(lane.label))
        totals = sum_over_workers(torch.tensor([readable, float(stop)], dtype=torch.float64))
        return totals[:1], bool(totals[1])

    def gradient_sync(self, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients over workers only in the `last` backward pass of a step."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    @property
    def max_rows(self) -> int | None:
        """Images of a lane computed at once. None: the whole lane, as BatchNorm training needs."""
        splits = 1 if self.running_statistics else self.state.micro_batch_splits
        return None if splits == 1 else -(-(self.recipe.micro_batch or 1) // splits)

    def split_batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches in parts of at most `max_rows` images."""
        for batch in batches:
            images = len(batch.label)
            rows = self.max_rows or max(1, images)
            yield from (batch.part(first, rows) for first in range(0, images, rows))

    def empty_batch(self, images: int = 2) -> Batch:
        """A lane of weight 0 for a worker without lanes: DDP needs its backward pass."""
        if self.phase.frozen and self.recipe.head_cache:
            width = self.network.backbone.num_features
            image = torch.zeros(images, width, dtype=torch.float16, device=self.device)
        else:
            size = self.recipe.image_size or 0
            image = torch.zeros(images, size, size, 3, dtype=torch.uint8, device=self.device)
            image = image.permute(0, 3, 1, 2)
        label = torch.zeros(images, dtype=torch.int64, device=self.device)
        if self.recipe.task == MULTILABEL:
            label = label[:, None].expand(images, self.network.num_classes)
        return Batch(image, label, torch.zeros(images, device=self.device), lane=-1)

    def augment(self, lane: Batch) -> MixedLane:
        """The lane after erasing and mixing; unchanged while the backbone is frozen."""
        if self.phase.frozen:
            return MixedLane(lane.image, lane.weight)
        return mix_lane(self.recipe, lane.image, lane.label, lane.weight, self.network.noise)

    def warm_up(self) -> None:
        """Run one pass of weight 0, so that DDP's buckets are final before the first step.

        DDP rebuilds its buckets after the first backward pass. Without this, a resumed run would
        add up its first step's gradients in another order than the original run (3 workers).
        """
        train_mode(self.network, self.recipe, self.phase.lowest_trainable)
        accumulate_gradients(self, [self.empty_batch()], 0, torch.ones(1))
        self.optimizer.zero_grad()

    def skip_step(self, step: int, rate: float) -> None:
        """Undo a step that is not finite. Raises NonFiniteError after more than `max_skips`.

        In float16 the loss scale decreases first, and such steps do not count until it cannot.
        """
        self.optimizer.zero_grad()
        if self.running_statistics:
            self.running_statistics.undo_step()
        if self.uses_loss_scale and self.state.scale.can_decrease:
            self.state.scale = self.state.scale.after_overflow()
            return
        earlier = self.state.skipped
        self.state.skipped += 1
        if earlier >= self.recipe.max_skips:
            repeated = (
                f", after {earlier} skipped step{'s' if earlier > 1 else ''}" if earlier else ""
            )
            raise NonFiniteError(
                f"the loss or its gradient is not finite at step {step}{repeated} "
                f"({self.recipe.opt}, learning rate {rate:.2g}, {self.recipe.precision}): "
                "lower --lr, or use --audit and look at the images of that step"
            )


def train_step(
    trainer: PhaseTrainer, lanes: Sequence[Batch], count: Tensor, rate: float
) -> MetricSums:
    """Take one optimizer step and return the global batch's sums, over all workers.

    `count` [1] is the global number of readable images, from `PhaseTrainer.sync_step`. If loss or
    gradient is not finite, the step counts but changes nothing.
    """
    step = trainer.state.step
    filled = [lane for lane in lanes if len(lane.label)]
    if not filled:
        # SyncBatchNorm must not include images that do not exist.
        filled = [trainer.empty_batch(0 if trainer.recipe.batchnorm == SYNC else 2)]
    sums = accumulate_gradients(trainer, filled, step, count).over_workers()
    norm = nn.utils.get_total_norm(trainer.unscaled_gradients())
    if not torch.isfinite(sums.sums[0] + norm):  # the same on every worker
        trainer.skip_step(step, rate)
        return sums.skipped()
    trainer.state.skipped = 0
    if trainer.uses_loss_scale:
        trainer.state.scale = trainer.state.scale.after_finite()
    set_learning_rate(trainer.optimizer, rate)
    if trainer.recipe.clip_grad:
        nn.utils.clip_grads_with_norm_(trainer.trainable, trainer.recipe.clip_grad, norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if trainer.moving_average:
        trainer.moving_average.update(step)
    return sums


@torch.no_grad()
def measure_step(trainer: PhaseTrainer, lanes: Sequence[Batch]) -> MetricSums:
    """The global batch's sums, over all workers, of a network that the step does not change."""
    network, sums = trainer.network.eval(), MetricSums.zero(trainer.device)
    for batch in trainer.split_batches(lanes):
        sums += MetricSums.of(network(batch.image), batch.label, batch.weight)
    return sums.over_workers()


def accumulate_gradients(
    trainer: PhaseTrainer, lanes: Sequence[Batch], step: int, count: Tensor
) -> MetricSums:
    """Add up the gradients of this worker's lanes, times the loss scale; return the lanes' sums.

    `count` [1] is the global number of images.
    """
    statistics = trainer.running_statistics
    scale = trainer.workers / max(1.0, float(count))  # DDP averages over workers
    if trainer.uses_loss_scale:
        scale *= trainer.state.scale.factor
    sums = MetricSums.zero(trainer.device)
    if statistics:
        statistics.begin_step()
    for index, lane in enumerate(lanes):
        last = index == len(lanes) - 1
        sums += accumulate_lane_gradients(trainer, lane, step, scale=scale, last=last)
        if statistics:
            statistics.end_lane(len(lane.label) if lane.lane >= 0 else 0)
    if statistics:
        statistics.end_step(sum_over_workers)
    return sums


def accumulate_lane_gradients(
    trainer: PhaseTrainer, lane: Batch, step: int, *, scale: float, last: bool
) -> MetricSums:
    """Add up the gradients of a lane's loss times `scale`, part by part; return the lane's sums.

    Random draws cover the whole lane, whatever its parts. After the step's `last` lane DDP reduces
    the gradients of all workers.
    """
    images, sums = len(lane.label), MetricSums.zero(trainer.device)
    torch.manual_seed(lane_seed(trainer.recipe.seed, step, lane.lane))
    augmented = trainer.augment(lane)
    trainer.network.begin_lane(images)
    rows = trainer.max_rows or images
    for first in range(0, max(1, images), max(1, rows)):
        part, mixed = lane.part(first, rows), augmented.part(first, rows)
        with trainer.gradient_sync(last=last and first + rows >= images):
            # SyncBatchNorm sends statistics of an empty batch in its dtype, others in float32.
            precision = trainer.autocast() if images else nullcontext()
            with precision, _SingleImageMode(trainer.network, lane):
                logits = trainer.model(mixed.image)
            loss = trainer.loss(logits.float(), part.label, mixed)
            ((loss * part.weight).sum() * scale).backward()  # type: ignore[no-untyped-call]
        if lane.lane >= 0:
            sums += MetricSums.of(logits, part.label, part.weight)
    return sums


def lane_seed(seed: int, step: int, lane: int) -> int:
    """Seed, of 63 bits, for every random draw of a lane in a step: dropout, mixing, …"""
    state = seed
    for part in (step + 1, lane + 2):  # SplitMix64's finaliser (Steele et al. 2014), chained
        state = (state + part * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class _SingleImageMode(AbstractContextManager[None]):
    """Puts BatchNorm into eval mode for a lane of one image with one value per channel.

    At 32 px the last feature maps are 1×1, and a single value has no variance.
    """

    def __init__(self, network: Network, lane: Batch) -> None:
        single = len(lane.label) == 1 and lane.image.ndim == 4 and lane.image.shape[-1] <= 32
        layers = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training)
        self._layers = list(layers) if single else []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.eval()

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.train()
