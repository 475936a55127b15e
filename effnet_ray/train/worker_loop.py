"""Training on one worker: resumes, trains, and writes checkpoints, logs and events. No Ray.

Ray reaches it as arguments only (rank, executor of chunks, event channel, report function), so
that plain processes can run it, too.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from effnet_ray import phases
from effnet_ray.data.chunks import ChunkExecutor
from effnet_ray.data.stream import Images, Stream
from effnet_ray.errors import (
    BadImagesError,
    CheckpointError,
    InputError,
    NonFiniteError,
    TrainingError,
)
from effnet_ray.model.network import fix_order_of_sums
from effnet_ray.recipe import MULTILABEL
from effnet_ray.train import events
from effnet_ray.train.checkpoint_writer import CheckpointWriter
from effnet_ray.train.collectives import worker_group
from effnet_ray.train.device_batches import DeviceBatches
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.evaluation import eval_batch
from effnet_ray.train.failures import failed_before, require_smaller_passes
from effnet_ray.train.head_features import HeadFeatures
from effnet_ray.train.head_solver import solve_head
from effnet_ray.train.loop import EpochSizes, fit
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.memory import is_out_of_memory
from effnet_ray.train.metric_definitions import (
    DEVICE_SECONDS,
    EVAL_LOSS,
    EVAL_TOP1,
    PROGRESS,
    TRAIN_LOSS,
)
from effnet_ray.train.resume import resume
from effnet_ray.train.state import TrainState, initial_state
from effnet_ray.train.step_log import StepLog
from effnet_ray.train.throughput import Throughput
from effnet_ray.train.worker_job import WorkerJob, WorkerRank

POST_EVERY_S = 0.5
"""Seconds between `StepDone` events: a progress bar looks alive. Chosen, not measured."""
# Batches are views of Ray's object store, which is read-only; nothing writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def run_worker(
    job: WorkerJob,
    rank: WorkerRank,
    channel: events.Channel,
    execute: ChunkExecutor,
    *,
    report: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Train from the newest checkpoint to the end; every worker of the group calls it.

    `report` receives each epoch's metrics, if given. If `should_stop` is true on any worker, the
    group saves a checkpoint and returns. Errors that new workers may get past are raised, as are
    InputError and CheckpointError; others are posted to the channel.
    """
    fix_order_of_sums()
    torch.backends.cudnn.benchmark = True  # a phase has few shapes: the fastest kernel of each
    if channel.has_failed():
        return  # a worker ended the run: Ray Train must not retry it
    started = time.perf_counter()
    try:
        with worker_group(rank.workers):
            state = initial_state(job.run, job.weights_uri, rank.device)
            resume(state, job, rank.rank, _post_skipped(channel))
            state.pass_size = channel.pass_limit()
            stream = Stream(
                job.dataset,
                rank=rank.rank,
                workers=rank.workers,
                first_step=state.step,
                execute=execute,
                eval_batch=eval_batch(job.run.recipe, rank.device),
            )
            loop = WorkerLoop(job, rank, state, channel, stream, report=report, started=started)
            loop.run(should_stop)
    except (InputError, CheckpointError) as error:  # which a retry cannot fix
        channel.post(events.RunFailed(str(error)))
        raise


def _post_skipped(channel: events.Channel) -> Callable[[str], None]:
    return lambda reason: channel.post(events.CheckpointSkipped(reason))


class WorkerLoop:
    """Runs the training loop of one worker, with its checkpoints, logs and events."""

    def __init__(
        self,
        job: WorkerJob,
        rank: WorkerRank,
        state: TrainState,
        channel: events.Channel,
        stream: Stream,
        *,
        report: Callable[[dict[str, Any]], None] | None,
        started: float,
    ) -> None:
        """`started`: the worker's start time, by `time.perf_counter`."""
        self._report = report
        self._job, self._rank, self._state, self._channel = job, rank, state, channel
        self._started, self._device_s_before = started, state.device_s
        self._writer = CheckpointWriter(
            job.checkpoints_uri, job.placement.keep_checkpoints, job.run.recipe.max_skips
        )
        self._throughput = Throughput(state.train_sums.images)
        self._epoch_start = self._last_post = time.perf_counter()
        self._posted_splits = 1
        plan = job.dataset.plan
        self._sizes = EpochSizes(
            plan.steps_per_epoch,
            plan.images,
            job.dataset.eval_plan.images,
            max_uses=plan.max_uses,
            class_weights=job.dataset.class_weights,
            max_bad_fraction=job.placement.max_bad_fraction,
        )
        self._log = StepLog(
            job.quarantine_uri,
            job.audit_uri if job.placement.audit else None,
            rank=rank.rank,
            steps_per_epoch=plan.steps_per_epoch,
        )
        self._batches = self._device_batches(stream)

    def _device_batches(self, stream: Stream) -> DeviceBatches:
        job = self._job
        return DeviceBatches(
            stream,
            self._rank.device,
            on_train_images=self._on_train_images,
            on_bad_eval_images=self._on_bad_eval_images,
            multilabel_classes=(len(job.run.classes) if job.run.recipe.task == MULTILABEL else 0),
        )

    def run(self, should_stop: Callable[[], bool] | None) -> None:
        """Train to the end. A failure that all workers share ends the run without retries."""
        self._post_start()
        try:
            finished = fit(
                self._state,
                self._job.run.recipe,
                self._sizes,
                self._batches,
                on_step=self._on_step,
                on_epoch=self._on_epoch,
                solve_head=partial(self._solve_head, should_stop),
                should_stop=should_stop,
            )
            if not finished and self._rank.leads:
                self._save()
                self._writer.wait()
                self._channel.post(events.Preempted(self._state.step))
        except RuntimeError as error:
            if is_out_of_memory(error):
                require_smaller_passes(
                    self._channel, self._state, self._job.run.recipe, self._sizes.steps_per_epoch
                )
            raise  # Ray Train retries, unless the channel has RunFailed
        except TrainingError as error:
            self._post_quarantined()
            if isinstance(error, NonFiniteError) and not failed_before(
                self._channel, self._rank, str(error)
            ):
                raise  # Ray Train retries, from the newest checkpoint
            bad_images = isinstance(error, BadImagesError)
            self._channel.post(events.RunFailed(str(error), bad_images=bad_images))
        self._writer.wait()

    def _solve_head(self, should_stop: Callable[[], bool] | None, state: TrainState) -> bool:
        """Solve the head from the cached features; a collective. False if it was stopped."""
        dataset, rank, start = self._job.dataset, self._rank, time.perf_counter()
        head = solve_head(
            state.networks,
            HeadFeatures(dataset, rank.rank, rank.workers, rank.device),
            TrainLoss.of(dataset.recipe, dataset.class_weights, rank.device),
            leads=rank.leads,
            should_stop=should_stop,
        )
        state.solved_head = head
        if head and rank.leads:
            seconds = time.perf_counter() - start
            self._channel.post(
                events.HeadSolved(head.penalty, head.passes, head.converged, seconds)
            )
        return head is not None

    def _post_start(self) -> None:
        if self._rank.leads:
            recipe, workers = self._job.run.recipe, self._rank.workers
            steps = recipe.epochs * self._sizes.steps_per_epoch
            device, description = self._rank.device.type, phases.describe(recipe)
            self._channel.post(
                events.WorkersStarted(workers, self._state.step, steps, device, description)
            )

    def _on_train_images(self, images: Images, epoch_step: int) -> None:
        """Called in the thread that prepares batches, at most one step ahead of the loop."""
        self._throughput.batch_arrived()
        epoch = self._state.step // self._sizes.steps_per_epoch
        self._log.log_train(images, epoch * self._sizes.steps_per_epoch + epoch_step)

    def _on_bad_eval_images(self, batches: list[Images]) -> None:
        self._log.log_eval(batches, self._state.step - 1)

    def _post_quarantined(self) -> None:
        """Post the images quarantined since the last call."""
        bad_images = self._log.take_bad_images()
        if bad_images:
            self._channel.post(events.ImagesQuarantined(bad_images))

    def _on_step(self, state: TrainState) -> None:
        self._throughput.step_done(state.images)
        if self._rank.leads:
            self._post_step(state)
            every = self._job.placement.checkpoint_every
            ends_epoch = state.step % self._sizes.steps_per_epoch == 0
            if every and state.step % every == 0 and not ends_epoch:
                self._save()

    def _post_step(self, state: TrainState) -> None:
        micro_batch = self._job.run.recipe.micro_batch or 1
        splits = -(-micro_batch // (state.pass_size or micro_batch))
        if splits > self._posted_splits:
            self._posted_splits = splits
            self._channel.post(events.MicroBatchSplit(splits))
        now = time.perf_counter()
        if now - self._last_post >= POST_EVERY_S:
            self._last_post = now
            rate = self._throughput.images_per_s
            self._channel.post(events.StepDone(state.step, state.train_sums.loss, rate))

    def _on_epoch(self, report: EpochReport, state: TrainState) -> None:
        done = events.EpochDone(
            report,
            seconds=time.perf_counter() - self._epoch_start,
            train_images=self._throughput.images,
            train_s=self._throughput.seconds,
            data_wait_s=self._batches.wait_s,
        )
        if self._rank.leads:
            self._save()
            self._channel.post(done)
        self._post_quarantined()
        if self._report:
            self._report(self._ray_metrics(done))
        self._throughput.epoch_done()
        self._epoch_start = time.perf_counter()

    def _save(self) -> None:
        """Save a checkpoint; worker 0 only."""
        self._state.device_s = self._device_s_before + self._device_s()
        self._writer.save(self._state)

    def _device_s(self) -> float:
        """Device seconds of this worker group: its workers times the time since they started."""
        return self._rank.workers * (time.perf_counter() - self._started)

    def _ray_metrics(self, done: events.EpochDone) -> dict[str, Any]:
        """An epoch's metrics for Ray Train.

        Ray Train takes one report each time it polls a worker; the next one waits until then.
        """
        recipe, report = self._job.run.recipe, done.report
        spent = phases.cost(recipe, report.epoch + 1)
        return {
            "epoch": report.epoch,
            "step": report.step,
            EVAL_TOP1.key: report.eval_top1,
            EVAL_LOSS.key: report.eval_loss,
            TRAIN_LOSS.key: report.train_loss,
            "train_images_per_s": done.images_per_s,
            PROGRESS: spent / phases.cost(recipe, recipe.epochs),
            DEVICE_SECONDS: self._device_s(),
        }
