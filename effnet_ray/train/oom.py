"""Running out of memory divides a lane's compute, not the plan.

Into how many parts is found before a phase's first step, is the same on every worker, and never
falls in a run. Weights and losses are the same but for float noise.
"""

import gc

import torch
import torch.distributed as dist

from effnet_ray.errors import TrainingError
from effnet_ray.model.network import train_mode
from effnet_ray.phases import HEAD, Phase
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.train.step import PhaseTrainer, lane_gradients

MOMENTS = 2
"""Tensors that most optimizers keep of each parameter, from their first step on."""


def warm_up(worker: PhaseTrainer) -> None:
    """What comes before a phase's first step.

    A CPU that runs out of memory does not say so, and a whole lane takes it long: none is tried;
    nor where workers normalise together, since one that fails would leave the others waiting.
    """
    if worker.device.type != "cpu" and worker.recipe.batchnorm != SYNC:
        divide(worker)
    worker.warm_up()


def divide(worker: PhaseTrainer) -> None:
    """Set the state's `pieces` so that a whole lane fits on every worker.

    Raises TrainingError on every worker where it does not on one of them.
    """
    state, recipe = worker.state, worker.recipe
    impossible = (recipe.micro_batch or 1) + 1
    pieces: int | None = state.pieces
    while pieces and not _fits(worker, pieces):
        pieces = splits_after(pieces, recipe, worker.phase)
    most = torch.tensor([pieces or impossible])
    if worker.workers > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    if int(most) == impossible:
        raise does_not_fit(recipe, worker.phase)
    state.pieces = int(most)


def splits_after(pieces: int, recipe: Recipe, phase: Phase) -> int | None:
    """Into how many parts a lane that does not fit in `pieces` is divided; None: into no more."""
    micro = recipe.micro_batch or 1
    if _normalised_together(recipe, phase) or pieces >= micro:
        return None
    return min(2 * pieces, micro)


def does_not_fit(recipe: Recipe, phase: Phase) -> TrainingError:
    """What to say where there are no more parts."""
    micro, size = recipe.micro_batch, recipe.image_size
    if _normalised_together(recipe, phase):
        return TrainingError(
            f"{micro} images of {size} px do not fit into memory at once to train {recipe.variant}"
            ", and BatchNorm, which learns, wants all of a micro-batch: lower --micro-batch, or "
            "choose --batchnorm frozen"
        )
    return TrainingError(
        f"not even one image of {size} px fits into memory to train {recipe.variant} "
        f"({recipe.precision}): lower --image-size, unfreeze less, or choose a smaller --variant"
    )


def _normalised_together(recipe: Recipe, phase: Phase) -> bool:
    """Whether BatchNorm's statistics are those of a micro-batch."""
    return recipe.batchnorm in ("train", SYNC) and phase.lowest < HEAD


def _fits(worker: PhaseTrainer, pieces: int) -> bool:
    """Whether a whole lane does, in so many parts."""
    worker.state.pieces = pieces
    try:
        _try(worker)
        return True
    except torch.OutOfMemoryError:
        pass  # what the error holds is freed with it
    gc.collect()
    torch.cuda.empty_cache()
    return False


def _try(worker: PhaseTrainer) -> None:
    """A lane of weight 0, on this worker alone, beside what the optimizer will keep."""
    train_mode(worker.network, worker.recipe, worker.phase.lowest)
    new = [p for p in worker.learning if p not in worker.optimizer.state]
    kept = [torch.empty_like(parameter) for parameter in new for _ in range(MOMENTS)]
    lane = worker.empty_batch(worker.recipe.micro_batch or 1)
    if worker.statistics:
        worker.statistics.begin_step()
    try:
        lane_gradients(worker, lane, 0, scale=1.0, last=False)
    finally:
        if worker.statistics:
            worker.statistics.undo_step()
        worker.optimizer.zero_grad()
        del kept
