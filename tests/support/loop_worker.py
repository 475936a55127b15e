"""What the loop's tests share: fixed batches in lanes, and one process of a group of workers."""

import copy
import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from effnet_ray.data.class_balance import class_weights
from effnet_ray.data.stream import Lane
from effnet_ray.model.network import build
from effnet_ray.model.optimizer import optimizer
from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.evaluation import evaluate
from effnet_ray.train.loop import EpochSizes, fit
from effnet_ray.train.state import TrainState

CLASSES = 4
WORLDS = (1, 3)
STEPS = 2


DIALS: dict[str, object] = {
    "weights": "ns", "head_epochs": 0, "unfreeze": "stage:5", "layer_decay": 0.7,
    "clip_grad": 1.0, "ema_decay": 0.9, "mixup": 0.2, "cutmix": 1.0, "reprob": 0.5,
    "label_smoothing": 0.1,
}  # fmt: skip
"""Every dial of a Recipe that the loop turns, but for what depends on the classes' sizes."""


def settled(**given: object) -> Recipe:
    """A small b0 from scratch, every field decided, with dropout and drop path."""
    values = {"weights": "none", "image_size": 32, "epochs": 1, "batch_size": 8, "micro_batch": 4,
              "lr": 1e-3, "batchnorm": "frozen", "dropout": 0.3, "drop_path": 0.2,
              "head": "trained"}  # fmt: skip
    recipe = Recipe(**(values | given))  # type: ignore[arg-type]
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


def new_state(recipe: Recipe) -> TrainState:
    network = build(recipe, recipe.variant_spec.input_spec(), CLASSES)
    averaged = copy.deepcopy(network) if recipe.ema_decay else None
    return TrainState(network, optimizer(network, recipe), averaged)


def random_batch(seed: int, images: int, size: int, lane: int = 0) -> Batch:
    """Images that only the seed decides; one in eight is quarantined where there are several."""
    draws = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=draws)
    label = torch.randint(0, CLASSES, (images,), generator=draws)
    weight = (torch.rand(images, generator=draws) > 1 / 8).float()
    weight[:1] = 1
    image = image.contiguous(memory_format=torch.channels_last)
    return Batch(image, label, weight, (Lane(lane, images),), int(weight.sum()))


def joined(lanes: Sequence[Batch]) -> Batch:
    """One batch of several lanes."""
    if not lanes:
        return Batch(torch.empty(0, 3, 0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0))
    image, label, weight = (
        torch.cat([getattr(lane, name) for lane in lanes]) for name in ("image", "label", "weight")
    )
    places = tuple(place for lane in lanes for place in lane.lanes)
    return Batch(image, label, weight, places, sum(lane.readable for lane in lanes))


@dataclass(frozen=True, slots=True)
class FixedBatches:
    """A plan of `steps` steps, dealt to workers lane by lane; the last lane's last is short."""

    recipe: Recipe
    steps: int = STEPS
    rank: int = 0
    workers: int = 1
    short: int = 1
    """Images of the last lane in the last step."""

    def train(self, step: int) -> Iterator[Batch]:
        """This worker's lanes of every step from `step` on."""
        for number in range(step, self.steps):
            mine = range(self.rank, self.recipe.lanes, self.workers)
            yield joined([self._lane(number, lane) for lane in mine])

    def eval(self) -> Iterator[Batch]:
        """This worker's share of five batches of three images."""
        for number in range(self.rank, 5, self.workers):
            yield self._batch(9000 + number, 3)

    def shape(self) -> EpochSizes:
        """What the whole plan holds."""
        lanes = [self._lane(s, k) for s in range(self.steps) for k in range(self.recipe.lanes)]
        label = torch.cat([lane.label for lane in lanes])
        if label.ndim == 2:
            return EpochSizes(self.steps, len(label), 15)
        counts = label.bincount(minlength=CLASSES).numpy()
        weights = class_weights(counts, self.recipe.class_weights)
        return EpochSizes(self.steps, len(label), 15, class_weights=weights)

    def _lane(self, step: int, lane: int) -> Batch:
        last = step == self.steps - 1 and lane == self.recipe.lanes - 1
        images = self.short if last else self.recipe.micro_batch or 0
        return self._batch(100 * step + lane, images, lane)

    def _batch(self, seed: int, images: int, lane: int = 0) -> Batch:
        batch = random_batch(seed, images, self.recipe.image_size or 0, lane)
        if self.recipe.task != "multilabel":
            return batch
        several = F.one_hot(batch.label, CLASSES) | F.one_hot(batch.label.flip(0), CLASSES)
        return replace(batch, label=several.to(torch.uint8))


def nothing(*_: object) -> None:
    """Hear of a step or an epoch, and do nothing."""


def train(recipe: Recipe, rank: int = 0, workers: int = 1, seen: int = STEPS) -> dict[str, Any]:
    """A whole run of one epoch: what every step and the epoch's end said, as JSON."""
    batches = FixedBatches(recipe, seen, rank, workers)
    state, sums, moved = new_state(recipe), [], []
    reports: list[EpochReport] = []
    norms: list[list[float]] = []
    state.optimizer.register_step_pre_hook(lambda *_: norms.append(_gradient_norms(state)))
    fit(
        state,
        recipe,
        batches.shape(),
        batches,
        on_step=lambda state: (
            sums.append(state.train_sums.sums.tolist()),
            moved.append(_statistics(state)),
        ),
        on_epoch=lambda report, _: reports.append(report),
    )
    several = recipe.task == "multilabel"
    untrained = evaluate([new_state(recipe).network], batches.eval(), multilabel=several)[0]
    return {
        "sums": sums,
        "statistics": moved,
        "gradients": norms,
        "eval": [*untrained.sums.sums.tolist(), untrained.mean_ap or 0.0],
        "reports": len(reports),
    }


def _statistics(state: TrainState) -> list[float]:
    buffers = [b for n, b in state.network.named_buffers() if n.endswith(("_mean", "_var"))]
    result: list[float] = torch.cat([b.flatten() for b in buffers]).tolist()
    return result


def _gradient_norms(state: TrainState) -> list[float]:
    return [float(p.grad.norm()) for p in state.network.parameters() if p.grad is not None]


def scenarios() -> dict[str, Recipe]:
    """What every world trains: 4 lanes without BatchNorm's batches, and 2 lanes with them; the
    head alone, with every dial on, from one phase into the next, and in float16.

    AdamW's first step is about the learning rate whatever the gradient, so that float noise in
    a gradient near 0 moves a weight by as much; where BatchNorm trains, a lower rate bounds it.
    """
    return {
        "frozen": settled(micro_batch=2),
        "train": settled(micro_batch=4, batchnorm="train", image_size=64, lr=1e-4),
        "head": settled(micro_batch=2, weights="ns", unfreeze="head"),
        "dials": settled(micro_batch=2, lr=1e-4, class_weights="sqrt", **DIALS),
        "phases": settled(
            micro_batch=2, weights="ns", epochs=2, head_epochs=1, lr=1e-5, opt="lamb"
        ),
        "float16": settled(micro_batch=2, lr=1e-5, precision="float16"),
        "multilabel": settled(micro_batch=2, task="multilabel", lr=1e-4, mixup=0.2),
    }


def worker(rank: int, folder: str) -> None:
    """One spawned process: as every world it belongs to, runs all scenarios; rank 0 writes."""
    torch.set_num_threads(1)
    for workers in WORLDS:
        if rank >= workers:
            continue
        if workers > 1:
            meeting = f"file://{folder}/meeting-{workers}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
        for name, recipe in scenarios().items():
            result = train(recipe, rank, workers)
            if rank == 0:
                Path(folder, f"{name}-{workers}.json").write_text(json.dumps(result))
        if workers > 1:
            gc.collect()  # DDP's reducers go before their group
            dist.barrier()  # nobody leaves while another still listens
            dist.destroy_process_group()
