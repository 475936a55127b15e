"""A whole run in plain processes: checkpoints, audit, quarantine and events, without Ray.

Processes are forked from a server that has imported torch once, so a run starts in a moment.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from effnet_ray import Placement, Recipe
from effnet_ray.data.thread_executor import ThreadExecutor
from effnet_ray.errors import CheckpointError, InputError
from effnet_ray.train import run_record
from effnet_ray.train.events import Event, EventChannel, RunStarted
from effnet_ray.train.run_monitor import RunMonitor
from effnet_ray.train.run_record import Result
from effnet_ray.train.run_setup import set_up_run
from effnet_ray.train.worker_job import WorkerJob, WorkerRank
from effnet_ray.train.worker_loop import run_worker
from support.features import compute_features

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    # What a worker imports when it needs it: seconds of CPU in every process otherwise.
    [__name__, "support.loop_worker", "pandas", "timm.optim", "timm.scheduler", "torch._dynamo"]
)
TIMEOUT_S = 120


def in_processes(work: Callable[..., None], *arguments: object, processes: int) -> None:
    """Call `work(rank, *arguments)` in so many processes; raises what one of them raises."""
    mp.start_processes(work, arguments, nprocs=processes, start_method="forkserver")


@dataclass(frozen=True)
class PlainRun:
    """What a group of workers did."""

    events: list[Event]
    """Of all workers, those of worker 0 first; none of a killed worker."""
    reports: list[dict[str, Any]]
    """What worker 0 reported to its `report` function."""
    result: Result | None
    """None for a run whose workers were killed."""

    @property
    def finished(self) -> Result:
        """The result of a run that came to its end."""
        assert self.result is not None
        return self.result


def plain_run(
    recipe: Recipe,
    data: str,
    runs: str,
    name: str,
    *,
    workers: int = 1,
    placement: Placement | None = None,
    mirror: str | None = None,
    kill_after_steps: int | None = None,
) -> PlainRun:
    """Run or resume a run with so many worker processes, on one thread each.

    Raises TrainingError if a worker ends the run.

    `kill_after_steps`: every worker kills itself (SIGKILL) after so many steps.
    """
    start = time.perf_counter()
    placement = placement or Placement(workers=str(workers), audit=True, checkpoint_every=2)
    setup = set_up_run(recipe, placement, data, runs=runs, name=name, mirror=mirror)
    assert not isinstance(setup, Result), "the run is finished"
    compute_features(setup.job)
    if setup.new:
        run_record.create(setup.job.run, setup.job.run_uri)
    monitor = RunMonitor(setup.job)
    events: list[Event] = [RunStarted(setup.job.run, setup.job.run_uri)]
    worker_events, reports = _run_workers(setup.job, workers, kill_after_steps)
    events += worker_events
    for event in events:
        monitor.on_event(event)
    if kill_after_steps is not None:
        return PlainRun(events, reports, None)
    result = monitor.result(seconds=time.perf_counter() - start)
    run_record.write_result(result)
    return PlainRun(events, reports, result)


def _run_workers(
    job: WorkerJob, workers: int, kill_after_steps: int | None
) -> tuple[list[Event], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        pipes = [PROCESSES.Pipe(duplex=False) for _ in range(workers)]
        processes = [
            PROCESSES.Process(
                target=_work,
                args=(job, rank, workers, f"{folder}/rendezvous", sender, kill_after_steps),
                daemon=True,
            )
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        events, reports = list[Event](), list[dict[str, Any]]()
        for receiver, _ in pipes:
            received = _receive(receiver)
            events += received[0]
            reports += received[1]
        for process in processes:
            process.join(TIMEOUT_S)
            assert process.exitcode is not None, "a worker hangs"
    if kill_after_steps is None:
        assert [process.exitcode for process in processes] == [0] * workers
    else:
        assert processes[0].exitcode == -signal.SIGKILL
    return events, reports


def _receive(receiver: Connection) -> tuple[list[Event], list[dict[str, Any]]]:
    """What a worker sent at its end; nothing if it was killed."""
    try:
        return receiver.recv() if receiver.poll(TIMEOUT_S) else ([], [])
    except EOFError:
        return [], []


def _work(
    job: WorkerJob,
    rank: int,
    workers: int,
    rendezvous: str,
    sender: Connection,
    kill_after_steps: int | None,
) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group(
            "gloo", init_method=Path(rendezvous).as_uri(), rank=rank, world_size=workers
        )
    channel, reports, steps = EventChannel(), list[dict[str, Any]](), 0

    def stop() -> bool:
        """Called before every step."""
        nonlocal steps
        if steps == kill_after_steps:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return False

    with contextlib.suppress(InputError, CheckpointError):  # posted to the channel
        run_worker(
            job,
            WorkerRank(rank, workers, torch.device("cpu")),
            channel,
            ThreadExecutor(2),
            report=reports.append if rank == 0 else None,
            should_stop=stop,
        )
    sender.send((channel.take(), reports))
    sender.close()
    if workers > 1:
        dist.destroy_process_group()
