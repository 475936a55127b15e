"""Resuming a run: the newest checkpoint on every worker, and logs that end where it does."""

from effnet_ray import storage
from effnet_ray.train import checkpoint, step_log
from effnet_ray.train.collectives import value_of_worker_0
from effnet_ray.train.state import TrainState
from effnet_ray.train.worker_job import WorkerJob


def resume(state: TrainState, job: WorkerJob, rank: int) -> None:
    """Load the newest checkpoint, chosen by worker 0, and delete logs of the steps after it."""
    newest = checkpoint.newest(job.checkpoints_uri) if rank == 0 else None
    step = newest.step if newest else -1
    if rank == 0:
        for log in (job.audit_uri, job.quarantine_uri):
            step_log.delete_from(log, max(0, step))
    step = value_of_worker_0(step)
    if step >= 0:
        uri = storage.join(job.checkpoints_uri, checkpoint.folder(step))
        (newest or checkpoint.open_checkpoint(uri)).load_into(state)
