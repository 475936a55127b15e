"""The training loop in plain torch. Ray, storage and clocks reach it as arguments only."""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from effnet_ray.errors import BadImagesError, TrainingError
from effnet_ray.model.network import train_mode
from effnet_ray.model.optimizer import learning_rate
from effnet_ray.phases import Phase, evaluates, phase_at
from effnet_ray.recipe import MULTILABEL, Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.epoch_report import EpochReport, ended_early
from effnet_ray.train.evaluation import EvalResult, best_result, epoch_report, evaluate
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.oom import prepare_phase
from effnet_ray.train.skipped_steps import SkippedSteps
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import GlobalBatch, PhaseTrainer, measure_step, train_step


class Batches(Protocol):
    """This worker's batches, in planned order."""

    def train(self, step: int) -> Iterator[Batch]:
        """The epoch's steps from `step` (of the epoch) on: the images of this worker's lanes."""
        ...

    def eval(self) -> Iterable[Batch]:
        """This worker's share of the eval split."""
        ...


@dataclass(frozen=True, slots=True)
class EpochSizes:
    """Numbers that are the same in every epoch: from the plan, the data and the placement."""

    steps_per_epoch: int
    train_images: int
    eval_images: int
    max_uses: int = 1
    """Maximum number of uses of one image per epoch."""
    class_weights: tuple[float, ...] = ()
    """Factor on the loss of each class's train images; empty: none."""
    max_bad_fraction: float = 1.0
    """Maximum share of a split's images that may be quarantined."""


def fit(
    state: TrainState,
    recipe: Recipe,
    sizes: EpochSizes,
    batches: Batches,
    *,
    on_step: Callable[[TrainState], None],
    on_epoch: Callable[[EpochReport, TrainState], None],
    solve_head: Callable[[TrainState], bool] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train from `state.step` to the end of the recipe. Called on every worker.

    Calls `on_step` after every step, and `on_epoch` after every epoch and its evaluation.
    Checkpoint after an epoch in `on_epoch`, not in `on_step`: the state of `on_step` lacks the
    epoch's report. In a phase with a solved head, `solve_head` sets it first, and the steps only
    measure it; it returns False if it was stopped. `should_stop` is checked before each step: if
    it is true on any worker, all workers stop before that step, and the result is False.
    Raises TrainingError: NonFiniteError after too many steps that are not finite, BadImagesError
    if too many images of a split are quarantined.
    """
    state.to_device()
    skipped = SkippedSteps(recipe)
    trainer: PhaseTrainer | None = None
    while state.step < recipe.epochs * sizes.steps_per_epoch:
        if ended_early(state.history, recipe):
            break
        epoch, step = divmod(state.step, sizes.steps_per_epoch)
        phase = phase_at(recipe, epoch)
        if trainer is None or trainer.phase != phase:
            trainer = None  # frees DDP's hooks: the next phase trains the same parameters
            trainer = _start_phase(state, recipe, phase, sizes)
            if phase.solved and not _has_solved_head(state, solve_head):
                return False
        train_mode(state.network, recipe, phase.lowest_trainable)
        for batch in batches.train(step):
            whole = trainer.sync_step(batch, should_stop is not None and should_stop())
            if whole.stop:
                skipped.check(newest=True)
                return False
            _take_step(trainer, batch, whole, sizes.steps_per_epoch, skipped)
            skipped.check()
            _check_train_images(state, sizes)
            on_step(state)
        skipped.check(newest=True)
        on_epoch(_finish_epoch(trainer, epoch, sizes, batches), state)
    return True


def _has_solved_head(state: TrainState, solve_head: Callable[[TrainState], bool] | None) -> bool:
    """Solve the head unless it is solved; False if that was stopped."""
    assert solve_head is not None, "a phase with a solved head needs a solver"
    return state.solved_head is not None or solve_head(state)


def _start_phase(
    state: TrainState, recipe: Recipe, phase: Phase, sizes: EpochSizes
) -> PhaseTrainer:
    gc.collect()  # the previous phase's DDP is part of a reference cycle
    device = next(state.network.parameters()).device
    loss = TrainLoss.of(recipe, sizes.class_weights, device)
    trainer = PhaseTrainer(state, recipe, phase, loss)
    prepare_phase(trainer)
    return trainer


def _take_step(
    trainer: PhaseTrainer,
    batch: Batch,
    whole: GlobalBatch,
    steps_per_epoch: int,
    skipped: SkippedSteps,
) -> None:
    """Train on the global batch; with a solved head, only measure it."""
    state = trainer.state
    if trainer.phase.solved:
        state.train_sums += measure_step(trainer, batch)
    else:
        rate = learning_rate(trainer.recipe, state.step, steps_per_epoch)
        state.train_sums += train_step(trainer, batch, whole.readable, rate)
        skipped.add(state.step, rate, state.skipped)
    state.step += 1
    state.images += whole.images
    state.quarantined += whole.images - whole.readable


def _finish_epoch(
    trainer: PhaseTrainer, epoch: int, sizes: EpochSizes, batches: Batches
) -> EpochReport:
    """Evaluate, if the recipe does after this epoch, and add the epoch's report to the history."""
    state = trainer.state
    state.eval_outputs = {}
    _check_count(epoch, "train", state.train_sums, sizes.train_images)
    results: list[EvalResult] = []
    if evaluates(trainer.recipe, epoch):
        results = evaluate(
            state.networks,
            batches.eval(),
            trainer.autocast,
            images=sizes.eval_images,
            multilabel=trainer.recipe.task == MULTILABEL,
        )
        _check_eval_images(results[0].sums, epoch, state.step, sizes)
        result = best_result(results)
        state.per_class, state.eval_outputs = result.per_class, result.outputs
    report = epoch_report(epoch, state.step, state.train_sums, *results)
    state.history.append(report)
    state.train_sums = MetricSums.zero(trainer.device)
    state.images = state.quarantined = 0
    return report


# Sums are equal on every worker: if a check fails, all workers stop at the same step.


def _check_train_images(state: TrainState, sizes: EpochSizes) -> None:
    """Raises BadImagesError if too many images of the epoch so far could not be read.

    One bad image is allowed, however often the epoch uses it.
    """
    _check_bad("train", state.quarantined, sizes, sizes.train_images, allowed=sizes.max_uses)


def _check_eval_images(sums: MetricSums, epoch: int, step: int, sizes: EpochSizes) -> None:
    """Raises TrainingError if images are missing, too many are bad, or the loss is not finite."""
    _check_count(epoch, "eval", sums, sizes.eval_images)
    _check_bad("eval", sums.quarantined, sizes, sizes.eval_images, allowed=1)
    if not torch.isfinite(sums.sums[0]):
        raise TrainingError(
            f"the eval loss is not finite after step {step - 1}: lower --lr, or use --audit and "
            "look at the images of that step"
        )


def _check_bad(split: str, bad: int, sizes: EpochSizes, images: int, *, allowed: int) -> None:
    max_bad = max(allowed, sizes.max_bad_fraction * images) if sizes.max_bad_fraction else 0
    if bad > max_bad:
        raise BadImagesError(
            f"{bad:,} of {images:,} {split} images cannot be read, more than "
            f"--max-bad-fraction {sizes.max_bad_fraction:g} allows"
        )


def _check_count(epoch: int, split: str, sums: MetricSums, planned: int) -> None:
    if sums.images != planned:
        raise TrainingError(
            f"epoch {epoch + 1} used {sums.images:,} {split} images, but {planned:,} were planned"
            ": the data changed during the run; if it did not, report this as a bug"
        )
