"""Resuming a run: the newest checkpoint on every worker, and logs that end where it does."""

from collections.abc import Callable

from effnet_ray import storage
from effnet_ray.errors import CheckpointError
from effnet_ray.train import checkpoint, step_log
from effnet_ray.train.checkpoint import Checkpoint
from effnet_ray.train.collectives import value_of_worker_0
from effnet_ray.train.state import TrainState
from effnet_ray.train.worker_job import WorkerJob


def resume(
    state: TrainState, job: WorkerJob, rank: int, on_damaged: Callable[[str], None]
) -> None:
    """Load the newest checkpoint, chosen by worker 0, and delete logs of the steps after it.

    Calls `on_damaged` with the reason for each checkpoint that is skipped. Raises CheckpointError
    if all are damaged: the run must not silently start again.
    """
    newest = _newest(job.checkpoints_uri, on_damaged) if rank == 0 else None
    step = newest.step if newest else -1
    if rank == 0:
        for log in (job.audit_uri, job.quarantine_uri):
            step_log.delete_from(log, max(0, step))
    step = value_of_worker_0(step)
    if step >= 0:
        uri = storage.join(job.checkpoints_uri, checkpoint.folder(step))
        (newest or checkpoint.open_checkpoint(uri)).load_into(state)


def _newest(checkpoints: str, on_damaged: Callable[[str], None]) -> Checkpoint | None:
    reasons: list[str] = []
    newest = checkpoint.newest(checkpoints, reasons.append)
    for reason in reasons:
        on_damaged(reason)
    if reasons and newest is None:
        raise CheckpointError(
            f"no checkpoint of this run can be used ({reasons[0]}): restore one from a copy, or "
            "choose another --name to train from the start"
        )
    return newest
