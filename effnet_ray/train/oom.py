"""Computing a lane in several *micro-batch splits* when it does not fit into memory at once.

The plan is unchanged. The number of micro-batch splits is found before the first step of a phase,
is the same on every worker, and never decreases in a run. Weights and losses change only by float
rounding.
"""

import gc

import torch

from effnet_ray.errors import TrainingError
from effnet_ray.model.network import train_mode
from effnet_ray.phases import Phase
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.train.collectives import max_over_workers
from effnet_ray.train.step import PhaseTrainer, accumulate_lane_gradients

MOMENTS = 2
"""Tensors per parameter that most optimizers allocate in their first step."""


def prepare_phase(trainer: PhaseTrainer) -> None:
    """Find the micro-batch splits that fit into memory, then warm up, before a phase's first step.

    Lanes are not tried out on a CPU, which does not report out of memory and is slow; nor with
    SyncBatchNorm, where one failing worker would leave the others waiting.
    """
    if trainer.device.type != "cpu" and trainer.recipe.batchnorm != SYNC:
        split_until_it_fits(trainer)
    trainer.warm_up()


def split_until_it_fits(trainer: PhaseTrainer) -> None:
    """Set the state's `micro_batch_splits` so that a whole lane fits on every worker.

    Raises TrainingError on every worker if it does not fit on one of them.
    """
    state, recipe = trainer.state, trainer.recipe
    impossible = (recipe.micro_batch or 1) + 1
    splits: int | None = state.micro_batch_splits
    while splits and not _fits(trainer, splits):
        splits = splits_after(splits, recipe, trainer.phase)
    max_splits = max_over_workers(splits or impossible)
    if max_splits == impossible:
        raise does_not_fit(recipe, trainer.phase)
    state.micro_batch_splits = max_splits


def splits_after(splits: int, recipe: Recipe, phase: Phase) -> int | None:
    """The next number of micro-batch splits to try after `splits`; None if there is none."""
    micro_batch = recipe.micro_batch or 1
    if _batchnorm_trains(recipe, phase) or splits >= micro_batch:
        return None
    return min(2 * splits, micro_batch)


def does_not_fit(recipe: Recipe, phase: Phase) -> TrainingError:
    """The error for a lane that does not fit and allows no more micro-batch splits."""
    micro_batch, size = recipe.micro_batch, recipe.image_size
    if _batchnorm_trains(recipe, phase):
        return TrainingError(
            f"a micro-batch of {micro_batch} images of {size} px does not fit into memory to "
            f"train {recipe.variant}, and cannot be split while BatchNorm is trained: lower "
            "--micro-batch, or use --batchnorm frozen"
        )
    return TrainingError(
        f"not even one image of {size} px fits into memory to train {recipe.variant} "
        f"({recipe.precision}): lower --image-size, unfreeze less, or choose a smaller --variant"
    )


def _batchnorm_trains(recipe: Recipe, phase: Phase) -> bool:
    """Whether BatchNorm computes statistics over a micro-batch."""
    return recipe.batchnorm in ("train", SYNC) and not phase.frozen


def _fits(trainer: PhaseTrainer, splits: int) -> bool:
    """Whether a whole lane fits into memory with this number of micro-batch splits."""
    trainer.state.micro_batch_splits = splits
    try:
        _run_empty_lane(trainer)
        return True
    except torch.OutOfMemoryError:
        pass  # tensors that the error refers to are freed with it
    gc.collect()
    torch.cuda.empty_cache()
    return False


def _run_empty_lane(trainer: PhaseTrainer) -> None:
    """Compute a lane of weight 0 on this worker alone, with the optimizer's memory reserved."""
    train_mode(trainer.network, trainer.recipe, trainer.phase.lowest_trainable)
    new = [p for p in trainer.trainable if p not in trainer.optimizer.state]
    reserved = [torch.empty_like(parameter) for parameter in new for _ in range(MOMENTS)]
    lane = trainer.empty_batch(trainer.recipe.micro_batch or 1)
    if trainer.running_statistics:
        trainer.running_statistics.begin_step()
    try:
        accumulate_lane_gradients(trainer, lane, 0, scale=1.0, last=False)
    finally:
        if trainer.running_statistics:
            trainer.running_statistics.undo_step()
        trainer.optimizer.zero_grad()
        del reserved
