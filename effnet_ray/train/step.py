"""One optimizer update over a global batch, which is a set of lanes. Plain torch.

Each worker runs its own lanes one after the other, every random draw seeded by (seed, step, lane),
and losses are sums divided by the global count: so the same recipe takes the same step on any
number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from effnet_ray.errors import NonFiniteError
from effnet_ray.model.compile import Compiled
from effnet_ray.model.ema import MovingAverage
from effnet_ray.model.network import (
    Network,
    RunningStatistics,
    batchnorms,
    set_trainable,
    train_mode,
)
from effnet_ray.model.optimizer import begin_phase, set_learning_rate
from effnet_ray.phases import Phase
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.tasks import MULTILABEL
from effnet_ray.train.metrics import MetricSums, losses, sum_over_workers
from effnet_ray.train.mixup import MixedLane, mix_lane
from effnet_ray.train.state import Batch, TrainState


class PhaseTrainer:
    """One worker's model in one phase: DDP around the network, and what every step needs."""

    def __init__(
        self,
        state: TrainState,
        recipe: Recipe,
        phase: Phase,
        class_weights: Sequence[float] = (),
    ) -> None:
        self.state, self.recipe = state, recipe
        self.network, self.optimizer = state.network, state.optimizer
        self.phase = phase
        self.learning = set_trainable(state.network, recipe, phase.lowest)
        begin_phase(state.optimizer)
        self.device = next(state.network.parameters()).device
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.model: nn.Module = state.network
        if recipe.compile and not phase.frozen:  # a head has little, and its features are eager
            self.model = Compiled(state.network, recipe.micro_batch or 0)
        if self.workers > 1:
            # BatchNorm's buffers are kept equal by RunningStatistics, not by broadcasts.
            self.model = DistributedDataParallel(
                self.model, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        train_mode(state.network, recipe, phase.lowest)
        moving = [layer for layer in batchnorms(state.network) if layer.training]
        self.statistics = RunningStatistics(moving) if moving else None
        self.average = (
            MovingAverage(state.averaged, state.network, recipe.ema_decay)
            if state.averaged
            else None
        )
        self.class_weights = (
            torch.tensor(class_weights, device=self.device) if class_weights else None
        )

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 or float16 where the recipe says so."""
        if self.recipe.precision == "float32":
            return nullcontext()
        half = torch.float16 if self.scales else torch.bfloat16
        return torch.autocast(self.device.type, dtype=half)

    @property
    def scales(self) -> bool:
        """Whether losses are scaled."""
        return self.recipe.precision == "float16"

    def unscaled(self) -> list[Tensor]:
        """The step's gradients, the loss scale taken out of them."""
        found = [p.grad for p in self.learning if p.grad is not None]
        if self.scales:
            torch._foreach_mul_(found, 1 / self.state.scale.factor)
        return found

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

    @property
    def rows(self) -> int | None:
        """Images of a lane that are computed at once; None: all, as where BatchNorm learns."""
        pieces = 1 if self.statistics else self.state.pieces
        return None if pieces == 1 else -(-(self.recipe.micro_batch or 1) // pieces)

    def divided(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same images, no more at once than of a lane."""
        for batch in batches:
            images = len(batch.label)
            rows = self.rows or max(1, images)
            yield from (batch.part(first, rows) for first in range(0, images, rows))

    def empty_batch(self, images: int = 2) -> Batch:
        """A lane of weight 0, for a worker that has none: DDP needs its backward pass."""
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

    def shown(self, lane: Batch) -> MixedLane:
        """The lane as it is learnt from; what the head alone learns from is left as it is."""
        if self.phase.frozen:
            return MixedLane(lane.image, lane.weight)
        return mix_lane(self.recipe, lane.image, lane.label, lane.weight, self.network.noise)

    def warm_up(self) -> None:
        """One pass of weight 0, so that DDP has laid out its buckets before the first step.

        It lays them out anew after its first backward pass; a resumed run would otherwise add
        gradients of its first step in another order than the run it continues (3 workers).
        """
        train_mode(self.network, self.recipe, self.phase.lowest)
        gradients(self, [self.empty_batch()], 0, torch.ones(1))
        self.optimizer.zero_grad()

    def skip(self, step: int, rate: float) -> None:
        """Leave all as before the step. Raises NonFiniteError where that is once too often.

        As long as the loss scale may be to blame, it falls instead: that is float16's way.
        """
        self.optimizer.zero_grad()
        if self.statistics:
            self.statistics.undo_step()
        if self.scales and self.state.scale.may_fall:
            self.state.scale = self.state.scale.fallen()
            return
        self.state.skipped += 1
        earlier = self.state.skipped - 1
        if earlier >= self.recipe.max_skips:
            as_at = f", as at the {earlier} before it" if earlier else ""
            raise NonFiniteError(
                f"the loss or its gradient is not finite at step {step}{as_at} "
                f"({self.recipe.opt}, learning rate {rate:.2g}, {self.recipe.precision}): "
                "lower --lr, or look at the images of that step with --audit"
            )


def train_step(
    worker: PhaseTrainer, lanes: Sequence[Batch], count: Tensor, rate: float, step: int
) -> MetricSums:
    """One optimizer update. Returns the global batch's tally, over all workers.

    `count` [1]: readable images of the global batch, from `Worker.agree`. A step whose loss or
    gradient is not finite is skipped: it counts as taken, and changes nothing.
    """
    filled = [lane for lane in lanes if len(lane.label)]
    if not filled:
        # What is normalised together must not see images that are none.
        filled = [worker.empty_batch(0 if worker.recipe.batchnorm == SYNC else 2)]
    tally = gradients(worker, filled, step, count).over_workers()
    norm = nn.utils.get_total_norm(worker.unscaled())
    if not torch.isfinite(tally.sums[0] + norm):  # the same on every worker
        worker.skip(step, rate)
        return tally.skipped()
    worker.state.skipped = 0
    if worker.scales:
        worker.state.scale = worker.state.scale.risen()
    set_learning_rate(worker.optimizer, rate)
    if worker.recipe.clip_grad:
        nn.utils.clip_grads_with_norm_(worker.learning, worker.recipe.clip_grad, norm)
    worker.optimizer.step()
    worker.optimizer.zero_grad()
    if worker.average:
        worker.average.follow(step)
    return tally


def gradients(
    worker: PhaseTrainer, lanes: Sequence[Batch], step: int, count: Tensor
) -> MetricSums:
    """Add up the gradients of this worker's lanes, times the loss scale in float16.

    `count` [1]: images of the global batch.
    """
    statistics = worker.statistics
    scale = worker.workers / max(1.0, float(count))  # DDP takes the mean over workers
    if worker.scales:
        scale *= worker.state.scale.factor
    tally = MetricSums.zero(worker.device)
    if statistics:
        statistics.begin_step()
    for index, lane in enumerate(lanes):
        tally += lane_gradients(worker, lane, step, scale=scale, last=index == len(lanes) - 1)
        if statistics:
            statistics.end_lane(len(lane.label) if lane.lane >= 0 else 0)
    if statistics:
        statistics.end_step(sum_over_workers)
    return tally


def lane_gradients(
    worker: PhaseTrainer, lane: Batch, step: int, *, scale: float, last: bool
) -> MetricSums:
    """Add up the gradients of a lane's loss times `scale`, part by part; its tally.

    What is drawn is drawn for the whole lane. After the `last` lane of a step DDP adds up those of
    all workers.
    """
    images, tally = len(lane.label), MetricSums.zero(worker.device)
    torch.manual_seed(lane_seed(worker.recipe.seed, step, lane.lane))
    shown = worker.shown(lane)
    worker.network.begin_lane(images)
    rows = worker.rows or images
    for first in range(0, max(1, images), max(1, rows)):
        part, seen = lane.part(first, rows), shown.part(first, rows)
        with worker.accumulating(last=last and first + rows >= images):
            # SyncBatchNorm gathers statistics of no images in their type, of others in float32.
            precision = worker.autocast() if images else nullcontext()
            with precision, _SingleImageMode(worker.network, lane):
                logits = worker.model(seen.image)
            found = _losses(worker, logits.float(), part.label, seen)
            ((found * part.weight).sum() * scale).backward()  # type: ignore[no-untyped-call]
        if lane.lane >= 0:
            tally += MetricSums.of(logits, part.label, part.weight)
    return tally


def _losses(worker: PhaseTrainer, logits: Tensor, label: Tensor, shown: MixedLane) -> Tensor:
    """Losses [B] by the labels, and by those mixed in."""
    own = _weighted(worker, logits, label)
    if shown.other is None:
        return own
    return shown.share * own + (1 - shown.share) * _weighted(worker, logits, shown.other)


def _weighted(worker: PhaseTrainer, logits: Tensor, label: Tensor) -> Tensor:
    """Losses [B], each times the weight of its label's class."""
    found, weights = losses(logits, label, worker.recipe.label_smoothing), worker.class_weights
    return found if weights is None else found * weights[label]


def lane_seed(seed: int, step: int, lane: int) -> int:
    """Seed of every random draw of a lane in a step: dropout, mixing, … 63 bits."""
    state = seed
    for part in (step + 1, lane + 2):  # SplitMix64's finaliser (Steele et al. 2014), chained
        state = (state + part * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class _SingleImageMode(AbstractContextManager[None]):
    """BatchNorm by its running statistics for a lone image of one value per channel.

    At 32 px the last maps are 1×1, and one value has no variance to normalise by.
    """

    def __init__(self, network: Network, lane: Batch) -> None:
        lone = len(lane.label) == 1 and lane.image.ndim == 4 and lane.image.shape[-1] <= 32
        layers = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training)
        self._layers = list(layers) if lone else []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.eval()

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.train()
