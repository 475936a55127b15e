"""The training loop: plain torch. No Ray, no storage, no clock; those reach it as arguments."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from effnet_ray.errors import BadImagesError, TrainingError
from effnet_ray.model.network import Network, train_mode
from effnet_ray.model.optimizer import learning_rate
from effnet_ray.phases import evaluates, phase_at
from effnet_ray.recipe import Recipe
from effnet_ray.tasks import MULTILABEL
from effnet_ray.train.epoch_report import EpochReport, ended_early
from effnet_ray.train.metrics import ClassCounts, EvalResult, MetricSums, better, epoch_report
from effnet_ray.train.oom import warm_up
from effnet_ray.train.precision import mean_of
from effnet_ray.train.ranking import ScoreCollector
from effnet_ray.train.state import Batch, TrainState
from effnet_ray.train.step import PhaseTrainer, train_step


class Batches(Protocol):
    """Where batches come from: planned, in order, this worker's share."""

    def train(self, step: int) -> Iterator[Sequence[Batch]]:
        """The epoch's steps from `step` (of the epoch) on, each as this worker's lanes."""
        ...

    def eval(self) -> Iterable[Batch]:
        """This worker's share of the eval split."""
        ...


@dataclass(frozen=True, slots=True)
class EpochSizes:
    """What the loop must know of the plan and its images."""

    steps_per_epoch: int
    train_images: int
    eval_images: int
    max_uses: int = 1
    """How often an epoch uses one train image, at most."""
    class_weights: tuple[float, ...] = ()
    """What a train image's loss is multiplied by, for each class; empty: nothing."""


def fit(
    state: TrainState,
    recipe: Recipe,
    shape: EpochSizes,
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
    `on_step` follows every step, `on_epoch` every epoch and its evaluation, if it has one. A state
    saved by `on_step` after an epoch's last step lacks its report: save it in `on_epoch`.
    Raises TrainingError where the images used are not those planned, an evaluation's loss is not
    finite or what is computed at once does not fit into memory, NonFiniteError where too many
    steps' losses are not finite, BadImagesError where more than `max_bad_fraction` of a split are
    quarantined.
    """
    state.tally = MetricSums(state.tally.sums.to(next(state.network.parameters()).device))
    worker: PhaseTrainer | None = None
    steps = recipe.epochs * shape.steps_per_epoch
    while state.step < steps and not ended_early(state.history, recipe):
        epoch, step = divmod(state.step, shape.steps_per_epoch)
        phase = phase_at(recipe, epoch)
        if worker is None or worker.phase != phase:
            worker = None
            gc.collect()  # DDP's hooks are on parameters that the next phase has too
            worker = PhaseTrainer(state, recipe, phase, shape.class_weights)
            warm_up(worker)
        train_mode(state.network, recipe, phase.lowest)
        for lanes in batches.train(step):
            count, leaving = worker.agree(lanes, leave())
            if leaving:
                return False
            rate = learning_rate(recipe, state.step, shape.steps_per_epoch)
            state.tally += train_step(worker, lanes, count, rate, state.step)
            state.step += 1
            _check_bad("train", state.tally, shape.train_images, max_bad_fraction, shape.max_uses)
            on_step(state)
        _reconcile(epoch, "train", state.tally, shape.train_images)
        evaluated = list[EvalResult]()
        if evaluates(recipe, epoch):
            evaluated = _evaluated(worker, epoch, shape, batches.eval(), max_bad_fraction)
        report = epoch_report(epoch, state.step, state.tally, *evaluated)
        state.history.append(report)
        state.tally = MetricSums.zero(worker.device)
        on_epoch(report, state)
    return True


def _evaluated(
    worker: PhaseTrainer,
    epoch: int,
    shape: EpochSizes,
    batches: Iterable[Batch],
    max_bad_fraction: float,
) -> list[EvalResult]:
    """An epoch's evaluations, held against the plan; the better one's classes are kept."""
    found = evaluate(
        worker.state.networks,
        worker.divided(batches),
        worker.autocast,
        several=worker.recipe.task == MULTILABEL,
    )
    _reconcile(epoch, "eval", found[0].tally, shape.eval_images)
    _check_bad("eval", found[0].tally, shape.eval_images, max_bad_fraction)
    _check_finite(found[0].tally, f"the evaluation after step {worker.state.step - 1}")
    worker.state.per_class = better(found).per_class
    return found


def _check_bad(
    split: str, tally: MetricSums, images: int, fraction: float, max_uses: int = 1
) -> None:
    """The tally is the same on every worker, so all of them stop at the same step.

    One image is allowed to be bad, however often it is used.
    """
    allowed = max(max_uses, fraction * images) if fraction else 0
    if tally.quarantined > allowed:
        raise BadImagesError(
            f"{tally.quarantined:,} of {images:,} {split} images cannot be read, more than "
            f"--max-bad-fraction {fraction:g} allows"
        )


def _check_finite(tally: MetricSums, when: str) -> None:
    """The tally is the same on every worker, so all of them stop."""
    if not torch.isfinite(tally.sums[0]):
        raise TrainingError(
            f"the loss is not finite at {when}: lower --lr, or look at the images of that step "
            "with --audit"
        )


@torch.no_grad()
def evaluate(
    networks: Sequence[Network],
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    several: bool = False,
) -> list[EvalResult]:
    """Each network's evaluation by all workers' batches; every image counts once.

    `several`: whether an image may have several classes. Called by every worker.
    """
    running = [RunningEvaluation(network, several=several) for network in networks]
    for batch in batches:
        for each in running:
            with autocast():
                logits = each.network(batch.image)
            each.add(logits, batch)
    return [each.over_workers() for each in running]


class RunningEvaluation:
    """A network's evaluation under way."""

    def __init__(self, network: Network, *, several: bool) -> None:
        self.network = network.eval()
        device = next(network.parameters()).device
        self._tally = MetricSums.zero(device)
        self._classes = ClassCounts(network.num_classes, device)
        self._ranking = ScoreCollector(network.num_classes, device) if several else None

    def add(self, logits: Tensor, batch: Batch) -> None:
        """What the network says of some images."""
        self._tally += MetricSums.of(logits, batch.label, batch.weight)
        self._classes.add(logits, batch.label, batch.weight)
        if self._ranking:
            self._ranking.add(logits, batch.label, batch.weight)

    def over_workers(self) -> EvalResult:
        """What it came to."""
        tally, found = self._tally.over_workers(), self._classes.over_workers()
        if not self._ranking:
            return EvalResult(tally, None, found)
        aps = self._ranking.over_workers()
        ranked = tuple(replace(one, ap=ap) for one, ap in zip(found, aps, strict=True))
        return EvalResult(tally, mean_of(aps), ranked)


def _reconcile(epoch: int, split: str, tally: MetricSums, planned: int) -> None:
    if tally.images != planned:
        raise TrainingError(
            f"epoch {epoch} used {tally.images:,} {split} images, the plan has {planned:,}: the "
            "data changed under the run, or this is a defect worth reporting"
        )
