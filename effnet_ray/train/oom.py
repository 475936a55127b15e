"""Finding how many images fit into a device's memory at once.

The plan is unchanged: a pass may have several lanes, or a part of one. Its size is found before
the first step of a phase, and is the same on every worker. Weights and losses change only by float
rounding.
"""

import gc

import torch

from effnet_ray.errors import TrainingError
from effnet_ray.model.network import train_mode
from effnet_ray.phases import Phase
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.train.collectives import min_over_workers
from effnet_ray.train.memory import is_out_of_memory
from effnet_ray.train.step import PhaseTrainer, add_gradients

MOMENTS = 2
"""Tensors per parameter that most optimizers allocate in their first step."""


def prepare_phase(trainer: PhaseTrainer) -> None:
    """Find how many images fit into memory at once, then warm up, before a phase's first step.

    On a CPU a pass is one micro-batch: it does not report out of memory, and trying is slow. With
    SyncBatchNorm nothing is tried either: one failing worker would leave the others waiting.
    """
    if trainer.device.type != "cpu" and trainer.recipe.batchnorm != SYNC:
        find_pass_size(trainer)
    trainer.warm_up()


def find_pass_size(trainer: PhaseTrainer) -> None:
    """Set the state's `pass_size` to what fits on every worker: at most all images of a step.

    Raises TrainingError on every worker if not even the smallest pass fits on one of them.
    """
    state, recipe = trainer.state, trainer.recipe
    micro_batch = recipe.micro_batch or 1
    images = -(-recipe.lanes // trainer.workers) * micro_batch
    size: int | None = micro_batch
    if not _batchnorm_trains(recipe, trainer.phase):
        size = min(micro_batch if recipe.compile else images, state.pass_size or images)
    while size and not _fits(trainer, size, images):
        size = smaller_pass(size, recipe, trainer.phase)
    state.pass_size = min_over_workers(size or 0)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()  # of this worker's trials: another may use the same GPU
    if not state.pass_size:
        raise does_not_fit(recipe, trainer.phase)


def smaller_pass(size: int, recipe: Recipe, phase: Phase) -> int | None:
    """The next number of images at once to try after `size`; None if there is none."""
    if _batchnorm_trains(recipe, phase) or size == 1:
        return None
    return -(-size // 2)


def does_not_fit(recipe: Recipe, phase: Phase) -> TrainingError:
    """The error for passes that do not fit and cannot be smaller."""
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


def _fits(trainer: PhaseTrainer, size: int, images: int) -> bool:
    """Whether a step over so many images fits into memory, in passes of at most `size`."""
    trainer.state.pass_size = size
    try:
        _run_padding(trainer, images)
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Tensors that the error refers to were freed with it.
    gc.collect()
    torch.cuda.empty_cache()
    return False


def _run_padding(trainer: PhaseTrainer, images: int) -> None:
    """Compute images of weight 0 on this worker alone, with the optimizer's memory reserved."""
    train_mode(trainer.network, trainer.recipe, trainer.phase.lowest_trainable)
    new = [p for p in trainer.trainable if p not in trainer.optimizer.state]
    reserved = [torch.empty_like(parameter) for parameter in new for _ in range(MOMENTS)]
    if trainer.running_statistics:
        trainer.running_statistics.begin_step()
    try:
        add_gradients(trainer, trainer.padding(images), 0, scale=1.0, sync=False)
    finally:
        if trainer.running_statistics:
            trainer.running_statistics.undo_step()
        trainer.optimizer.zero_grad()
        del reserved
