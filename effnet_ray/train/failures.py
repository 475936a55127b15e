"""What a worker does when training fails: new workers try again, or the run ends."""

import time

from effnet_ray import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train import oom
from effnet_ray.train.events import Channel, RunFailed
from effnet_ray.train.state import TrainState
from effnet_ray.train.worker_job import WorkerRank

DECISION_S = 2
"""How long the other workers wait for worker 0 to decide about a retry: one call to the event
queue. A longer time delays every retry; after a shorter one a retry may start before the decision
is recorded. Chosen, not measured."""


def failed_before(channel: Channel, rank: WorkerRank, message: str) -> bool:
    """Whether the run failed with this message before, in which case worker 0 ends it.

    The others wait for worker 0: Ray Train ends all workers as soon as one raises.
    """
    if not rank.leads:
        time.sleep(DECISION_S)
        return False
    return channel.failed_before(message)


def require_smaller_passes(
    channel: Channel, state: TrainState, recipe: Recipe, steps_per_epoch: int
) -> None:
    """After running out of memory, make the next workers compute fewer images at once.

    Ends the run if there can be no fewer.
    """
    epoch = min(state.step // steps_per_epoch, recipe.epochs - 1)
    phase = phases.phase_at(recipe, epoch)
    size = oom.smaller_pass(state.pass_size or recipe.micro_batch or 1, recipe, phase)
    if size:
        channel.limit_passes(size)
    else:
        channel.post(RunFailed(str(oom.does_not_fit(recipe, phase))))
