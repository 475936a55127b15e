"""Runs the workers of a run with Ray Train."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from effnet_ray.errors import ControllerDiedError, TrainingError
from effnet_ray.runtime import session, signal_handlers
from effnet_ray.storage.temporary import scratch_folder
from effnet_ray.train import events
from effnet_ray.train.network_interface import BoundTorchConfig
from effnet_ray.train.worker import RayWorkerConfig, train

POLL_INTERVAL_ENV = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Environment variable with the seconds between Ray Train's polls of its workers."""
DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)
"""What Ray raises when it or the system has killed the process that controls the workers."""
POLLS_PER_S = 64
"""Most workers that are polled per second. Chosen, not measured."""


def run_trainer(
    config: RayWorkerConfig, request: session.ResourceRequest, callbacks: Sequence[UserCallback]
) -> None:
    """Train with Ray Train until the workers return. Raises TrainingError.

    Ray Train's own state goes to a temporary folder: a run resumes from its own checkpoints.
    """
    run, placement = config.job.run, config.job.placement
    with scratch_folder("ray-train") as scratch:
        trainer = TorchTrainer(
            train,
            train_loop_config={"worker": config},
            scaling_config=ScalingConfig(
                num_workers=request.workers,
                use_gpu=request.use_gpu,
                resources_per_worker=request.resources_per_worker,
                label_selector=request.labels or None,
            ),
            torch_config=BoundTorchConfig(backend=request.backend),
            run_config=RunConfig(
                name=run.name,
                storage_path=str(scratch),
                failure_config=FailureConfig(max_failures=placement.max_failures),
                callbacks=[*callbacks, DeathReporter(config.channel)],
            ),
        )
        try:
            with _interruptible(), poll_interval(placement.worker_range[1]):
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(
                f"run {run.name!r} failed: {_cause(error)}: run the same command again to "
                "resume it from its newest checkpoint"
            ) from error
        except DEATHS as error:
            raise ControllerDiedError(
                f"run {run.name!r} failed: the process that controls its workers died (killed, "
                "or out of memory?): run the same command again to resume it from its newest "
                "checkpoint, with fewer --workers if memory ran out"
            ) from error


@contextmanager
def poll_interval(workers: int) -> Iterator[None]:
    """Make Ray Train poll `workers` workers often, unless the environment sets an interval.

    The end of a run, its reports to callbacks and a worker's death wait for the next poll, which
    takes 2 s by default (ray 2.60 `controller.py`, `worker.py`).
    """
    seconds = max(0.2, workers / POLLS_PER_S)
    value = os.environ.get(POLL_INTERVAL_ENV) or f"{seconds:g}"
    with session.environment_variables({POLL_INTERVAL_ENV: value}):
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into a KeyboardInterrupt.

    Ray Train handles SIGINT itself: it aborts its workers and raises SystemExit.
    """
    try:
        with signal_handlers.restored(signal.SIGINT):
            yield
    except SystemExit as exit_error:
        raise KeyboardInterrupt from exit_error


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The innermost exception in one line: a worker's own, if there is one."""
    failures = getattr(error, "worker_failures", None) or {}
    return _innermost(
        next(iter(failures.values()), None) or getattr(error, "controller_failure", error)
    )


def _innermost(error: Any) -> str:
    while getattr(error, "cause", None):
        error = error.cause
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    message = lines[-1].strip() if lines else "no message"
    # Ray 2.60 adds all that may have ended a process, and its own advice.
    return f"{type(error).__name__}: {message.partition(' Worker exit type:')[0]}"


class DeathReporter(UserCallback):  # type: ignore[misc]  # Ray Train has no types
    """Posts an event when a worker dies."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def after_exception(
        self, run_context: object, worker_exceptions: dict[int, Exception]
    ) -> None:
        """Called in the process of Ray Train's controller."""
        reason = next(map(_innermost, worker_exceptions.values()), "no reason given")
        self._channel.post.remote(events.WorkerDied(reason))
