"""The driver of a run: refuse early, record what will run, then let Ray Train run it."""

import hashlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from effnet_ray import storage
from effnet_ray.data import feature_cache as kept, manifest as manifests, train_labels
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import ControllerDiedError, RecipeError, TrainingError
from effnet_ray.model import pretrained
from effnet_ray.model.compile import check_compiler
from effnet_ray.placement import Placement
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.runtime import pending, session
from effnet_ray.runtime.actors import deliver_events
from effnet_ray.storage.names import check_name
from effnet_ray.train import checkpoint, events, precompute_features, run_record
from effnet_ray.train.epoch_report import best, ended_early
from effnet_ray.train.run_record import Result, Run
from effnet_ray.train.worker import WorkerJob, train

OnEvent = Callable[[events.Event], None]
NAMED = 3
"""Bad images that a failed run's sentence names."""
POLL_EVERY, POLLS_A_SECOND = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", 64
"""How often Ray Train looks at its workers; and at how many in a second, at most, here."""


def finetune(
    recipe: Recipe,
    placement: Placement,
    data: str,
    *,
    runs: str,
    name: str | None = None,
    mirror: str | None = None,
    features_in: str | None = None,
    on_event: OnEvent = lambda event: None,
    callbacks: Sequence[UserCallback] = (),
    connect: Callable[[Placement], object] = lambda p: session.connect(
        p, local=False, verbose=False
    ),
) -> Result:
    """Fine-tune as the recipe says; resume an unfinished run; report a finished one.

    `data` is a packed data set, `runs` the folder of all runs; `name` defaults to one that
    follows from recipe and data. `mirror` holds pretrained weights; features are kept in
    `features_in`, else under `runs`; `on_event` is called with the events of `events`, and Ray
    Train calls `callbacks` after every epoch (short ones wait for that); `connect` joins or
    starts Ray once everything else is in order.
    Raises InputError before anything is leased, TrainingError when the run fails.
    """
    began = time.perf_counter()
    data, runs = storage.absolute(data), storage.absolute(runs)
    manifest = manifests.load(data)
    name = check_run_name(name or run_record.default_name(recipe, manifest.fingerprint))
    run_uri = storage.join(runs, name)
    run = run_record.load(run_uri)
    if run:
        run_record.check_same(run, recipe, manifest.fingerprint)
        ended = run_record.load_result(run_uri)
        if ended:
            return ended
    manifests.check_trainable(manifest.limited(recipe.limit), data)
    new = run is None
    run, weights_uri = _begin(run, recipe, placement, manifest, data, runs, name, mirror)
    check_sync(run.recipe, placement)
    dataset = _dataset(run, manifest, data, features_in or storage.join(runs, kept.FOLDER))
    if run.recipe.compile and not (session.is_submitted_job() or ray.is_initialized()):
        check_compiler(on_gpu=placement.gpus_per_worker > 0)  # workers will run on this machine
    connect(placement)
    lease = session.request_resources(placement, [data, runs])
    if new:  # not before: what was settled for a cluster that cannot be had must not stay
        run_record.create(run, run_uri)
    on_event(events.RunStarted(run, run_uri))
    board, reports = events.start_event_channel(), bool(callbacks)
    job = WorkerJob(run, run_uri, dataset, placement, weights_uri, board, reports)
    ending = _train_to_the_end(job, lease, on_event, callbacks, new=new)
    result = ending.result(run, run_uri, seconds=time.perf_counter() - began)
    run_record.write_result(result)
    return result


def check_run_name(name: str) -> str:
    """Return the run's name. Raises RecipeError if it is not a safe folder name."""
    return check_name(name, "a run", RecipeError)


def _begin(
    run: Run | None,
    recipe: Recipe,
    placement: Placement,
    manifest: Manifest,
    data: str,
    runs: str,
    name: str,
    mirror: str | None,
) -> tuple[Run, str | None]:
    """The run, settled if it is new, and where its pretrained file lies."""
    if run:
        return run, _weights_uri(runs, run.weights_sha256)
    weights = pretrained.resolve(recipe)
    settled = recipe.resolved(
        weights.spec,
        workers=placement.worker_range[1],
        on_gpu=placement.gpus_per_worker > 0,
        task=manifest.task,
    )
    check_sync(settled, placement)
    fetched = pretrained.fetch(weights, mirror)
    digest = hashlib.sha256(fetched).hexdigest() if fetched else ""
    uri = _weights_uri(runs, digest)
    if fetched and uri and not storage.exists(uri):
        storage.write_bytes(uri, fetched)
    run = Run(
        name=name,
        recipe=settled,
        spec=pretrained.input_spec(settled, weights.spec),
        classes=manifest.classes,
        data=data,
        fingerprint=manifest.fingerprint,
        weights=weights.name,
        weights_sha256=digest,
        weights_head=pretrained.head_classes(weights, manifest.classes),
    )
    return run, uri


def check_sync(recipe: Recipe, placement: Placement) -> None:
    """Raises RecipeError where workers cannot normalise a batch together."""
    low, high = placement.worker_range
    fits = placement.gpus_per_worker > 0 and low == high == recipe.lanes
    if recipe.batchnorm == SYNC and not fits:
        raise RecipeError(
            f"batchnorm is sync with {high} workers of {placement.gpus_per_worker} GPUs: expected "
            f"one with a GPU for each micro-batch (--workers {recipe.lanes} --gpus-per-worker 1; "
            f"batch_size / micro_batch is {recipe.lanes}); or choose train or frozen"
        )


def _weights_uri(runs: str, digest: str) -> str | None:
    """Pretrained files are shared by the runs that start from them."""
    return storage.join(runs, "weights", f"{digest}.safetensors") if digest else None


def _dataset(run: Run, manifest: Manifest, data: str, features_in: str) -> Dataset:
    """What workers read, with the labels that the recipe's plan and loss need."""
    limited = manifest.limited(run.recipe.limit)
    return Dataset(
        limited,
        manifests.folder(data),
        run.recipe,
        run.spec,
        labels=train_labels.read_train_labels(limited, data) if run.recipe.needs_labels else None,
        features=features_in,
        backbone=run.weights_sha256,
    )


def _train_to_the_end(
    job: WorkerJob,
    lease: session.ResourceRequest,
    on_event: OnEvent,
    callbacks: Sequence[UserCallback],
    *,
    new: bool,
) -> "RunMonitor":
    """Train; what was heard of it. Raises TrainingError."""
    ending = RunMonitor(on_event)
    while True:
        try:
            with (
                pending.report_waiting(lease, ending.on_event) as waiting,
                deliver_events(job.board, track_waiting(waiting, ending.on_event)),
            ):
                precompute_features.prepare(job, lease, new=new)
                new = False
                _train(job, lease, [*callbacks, DeathReporter(job.board)])
        except TrainingError:
            ending.check(job.run, job.run_uri)  # a worker's own reason is the better one
            raise
        if not ending.left:
            return ending


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


def _train(
    job: WorkerJob, lease: session.ResourceRequest, callbacks: Sequence[UserCallback]
) -> None:
    """Run Ray Train. Its own state goes to a folder that is thrown away: we resume from ours."""
    with tempfile.TemporaryDirectory(prefix="effnet-ray-train-") as scratch:
        trainer = TorchTrainer(
            train,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=lease.workers,
                use_gpu=lease.use_gpu,
                resources_per_worker=lease.resources_per_worker,
                label_selector=lease.labels or None,
            ),
            torch_config=TorchConfig(backend=lease.backend),
            run_config=RunConfig(
                name=job.run.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=job.placement.max_failures),
                callbacks=list(callbacks),
            ),
        )
        try:
            with _interruptible(), poll_interval(job.placement.worker_range[1]):
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(
                f"run {job.run.name!r} failed: {_cause(error)}: run the same command again to "
                "resume it from its newest checkpoint"
            ) from error
        except ray.exceptions.RayActorError as error:
            raise ControllerDiedError(
                f"run {job.run.name!r} failed: the process that leads its workers died (killed, "
                "or out of memory?): run the same command again to resume it from its newest "
                "checkpoint"
            ) from error


@contextmanager
def poll_interval(workers: int) -> Iterator[None]:
    """Have Ray Train look often at so many workers, if nobody has said how often.

    A run's end, its reports to callbacks and a worker's death wait for that, by default for 2 s
    (ray 2.60 `controller.py`, `worker.py`).
    """
    seconds = max(0.2, workers / POLLS_A_SECOND)
    with session.environment_variable(POLL_EVERY, os.environ.get(POLL_EVERY) or f"{seconds:g}"):
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt here as everywhere.

    Ray Train takes SIGINT for itself: it aborts its workers and leaves by SystemExit.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as left:
        raise KeyboardInterrupt from left
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The innermost reason, in one line: the worker's own exception where there is one."""
    failures = getattr(error, "worker_failures", None) or {}
    return _innermost(
        next(iter(failures.values()), None) or getattr(error, "controller_failure", error)
    )


def _innermost(reason: Any) -> str:
    while getattr(reason, "cause", None):
        reason = reason.cause
    lines = [line for line in str(reason).strip().splitlines() if line.strip()]
    return f"{type(reason).__name__}: {lines[-1].strip() if lines else 'no message'}"


class DeathReporter(UserCallback):  # type: ignore[misc]  # Ray Train has no types
    """Tells the board of workers that died."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(
        self, run_context: object, worker_exceptions: dict[int, Exception]
    ) -> None:
        """Called by the leader of the workers."""
        why = next(map(_innermost, worker_exceptions.values()), "no reason given")
        self._board.post.remote(events.WorkerDied(why))


class RunMonitor:
    """Hears a run's events, passes them on, and makes the Result from the last of them."""

    def __init__(self, on_event: OnEvent) -> None:
        self._pass_on = on_event
        self._started: events.WorkersStarted | None = None
        self._failed: events.RunFailed | None = None
        self._images = self._train_s = 0.0
        self.left = False
        """Whether the workers left before the end: others go on, on other machines."""
        self._bad: dict[int, str] = {}

    def on_event(self, event: events.Event) -> None:
        """Remember what the Result needs."""
        match event:
            case events.WorkersStarted():
                self._started, self._images, self._train_s = event, 0.0, 0.0
                self.left = False
            case events.Preempted():
                self.left = True
            case events.EpochDone() if event.images_per_s:
                self._images += event.report.train_images
                self._train_s += event.report.train_images / event.images_per_s
            case events.ImagesQuarantined():
                self._bad |= event.images
            case events.RunFailed():
                self._failed = event
        self._pass_on(event)

    def check(self, run: Run, run_uri: str) -> None:
        """Raises TrainingError where a worker gave the run up."""
        if self._failed:
            message = self._failed.message
            if self._failed.bad_images:
                message += (
                    f" ({'; '.join(list(self._bad.values())[:NAMED])}): all are named in "
                    f"{storage.join(run_uri, run_record.QUARANTINE)}: mend them and pack again, "
                    "or raise --max-bad-fraction"
                )
            raise TrainingError(f"run {run.name!r} failed: {message}")

    def result(self, run: Run, run_uri: str, *, seconds: float) -> Result:
        """Figures of the best epoch, from the run's own record. Raises TrainingError."""
        self.check(run, run_uri)
        last = checkpoint.newest(storage.join(run_uri, run_record.CHECKPOINTS))
        winner = best(last.history) if last else None
        done = last and (
            len(last.history) == run.recipe.epochs or ended_early(last.history, run.recipe)
        )
        if not last or not winner or not done:
            raise TrainingError(
                f"run {run.name!r} stopped before its last epoch: run the same command again to "
                "resume it"
            )
        top1, top5, loss = winner.eval_top1, winner.eval_top5, winner.eval_loss
        assert top1 is not None and top5 is not None and loss is not None  # it was evaluated
        folder = checkpoint.folder(winner.step)
        return Result(
            run=run.name,
            run_uri=run_uri,
            checkpoint=storage.join(run_uri, run_record.CHECKPOINTS, folder),
            eval_top1=top1,
            eval_top5=top5,
            eval_loss=loss,
            eval_map=winner.eval_map,
            epochs=len(last.history),
            steps=last.step,
            resumed_from_step=self._started.step if self._started else 0,
            train_images_per_s=self._images / self._train_s if self._train_s else 0.0,
            seconds=seconds,
            device_seconds=round(last.progress.device_s, 1),
            quarantined=last.history[-1].quarantined,
        )
