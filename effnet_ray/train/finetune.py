"""Fine-tunes a network: sets up the run, requests resources, and lets Ray Train run it."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.train import UserCallback

from effnet_ray import storage
from effnet_ray.errors import TrainingError
from effnet_ray.model.compile import check_compiler
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.runtime import gpus, pending, session
from effnet_ray.runtime.actors import deliver_events, start_local_actor
from effnet_ray.train import events, precompute_features, run_record
from effnet_ray.train.ray_trainer import run_trainer
from effnet_ray.train.run_monitor import OnEvent, RunMonitor
from effnet_ray.train.run_record import Result
from effnet_ray.train.run_setup import RunSetup, set_up_run
from effnet_ray.train.worker import RayWorkerConfig


def finetune(
    recipe: Recipe,
    placement: Placement,
    data: str,
    *,
    runs: str,
    name: str | None = None,
    mirror: str | None = None,
    features_in: str | None = None,
    on_event: OnEvent | None = None,
    callbacks: Sequence[UserCallback] = (),
    connect: Callable[[Placement], object] | None = None,
) -> Result:
    """Fine-tune by the recipe; resume an unfinished run, or return a finished run's result.

    `data` is a packed data set, `runs` the folder of all runs; `name` defaults to one derived from
    recipe and data. `mirror` is a folder of pretrained weights, `features_in` the folder of cached
    features (default: below `runs`). `on_event` receives the events of `train.events`; Ray Train
    calls `callbacks` after every epoch, for which workers wait. `connect` joins or starts Ray,
    once all else is checked, or first if there may be GPUs.
    Raises InputError before resources are requested, TrainingError if the run fails.
    """
    start = time.perf_counter()
    connect = connect or _connect
    here = not (session.is_submitted_job() or ray.is_initialized())
    placement = gpus.with_default_gpus(placement, connect)
    setup = set_up_run(
        recipe, placement, data, runs=runs, name=name, mirror=mirror, features_in=features_in,
        bfloat16=gpus.have_bfloat16(placement),
        cores=_local_cores(placement) if here and not placement.on_gpu else None,
    )  # fmt: skip
    if isinstance(setup, Result):
        return setup
    job = setup.job
    if job.run.recipe.compile and here:
        check_compiler(on_gpu=placement.on_gpu)  # workers will run on this machine
    connect(placement)
    uris = [storage.absolute(data), storage.absolute(runs)]
    request = session.request_resources(placement, uris)
    if setup.new:  # only now: a recipe resolved for unavailable resources must not be recorded
        run_record.create(job.run, job.run_uri)
    monitor = RunMonitor(job, on_event)
    monitor.on_event(events.RunStarted(job.run, job.run_uri))
    _train(setup, request, monitor, callbacks)
    result = monitor.result(seconds=time.perf_counter() - start)
    run_record.write_result(result)
    return result


def _local_cores(placement: Placement) -> int:
    """The cores of this machine that all workers together may use."""
    cores = os.cpu_count() or 1
    limit = placement.cores
    return cores if limit is None else min(cores, limit * placement.worker_range[1])


def _connect(placement: Placement) -> None:
    session.connect(placement, local=False, verbose=False)


def _train(
    setup: RunSetup,
    request: session.ResourceRequest,
    monitor: RunMonitor,
    callbacks: Sequence[UserCallback],
) -> None:
    """Run workers until the run ends; start new ones after a preemption. Raises TrainingError."""
    job, new, channel = setup.job, setup.new, start_event_channel()
    config = RayWorkerConfig(job, channel, reports=bool(callbacks))
    while True:
        try:
            with (
                pending.report_waiting(request, monitor.on_event) as waiting,
                deliver_events(channel, track_waiting(waiting, monitor.on_event)),
            ):
                precompute_features.prepare(job, request, channel, new=new)
                new = False
                run_trainer(config, request, callbacks)
        except TrainingError:
            monitor.raise_if_failed()  # a worker's own message is more precise
            raise
        if not monitor.preempted:
            return


def start_event_channel() -> Any:
    """Start the actor that carries the events of a run.

    Ray starts it again if it dies. Events on their way are lost, and what it remembers: a worker
    that ends the run then fails twice.
    """
    return start_local_actor(events.EventChannel, max_restarts=-1)


def track_waiting(waiting: pending.WaitReporter, on_event: OnEvent) -> OnEvent:
    """Return a callback that passes events on and tells `waiting` whether workers are missing."""

    def handle(event: events.Event) -> None:
        match event:
            case events.ComputingFeatures(done, images) if 0 < done < images:
                waiting.stop()
            case events.WorkersStarted():
                waiting.stop()
            case events.ComputingFeatures() | events.WorkerDied() | events.Preempted():
                waiting.start()
        on_event(event)

    return handle
