"""One Ray Train worker: it connects the loop to its stream, its checkpoints and its board."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F

from effnet_ray import phases, storage
from effnet_ray.data.chunks import BadImage, Dataset
from effnet_ray.data.ray_executor import RayExecutor
from effnet_ray.data.stream import Images, Stream
from effnet_ray.errors import BadImagesError, InputError, NonFiniteError, TrainingError
from effnet_ray.placement import Placement
from effnet_ray.recipe import MULTILABEL
from effnet_ray.runtime.preemption import PreemptionWatch
from effnet_ray.train import audit, checkpoint, checkpoint_writer, oom, quarantine, run_record
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import (
    EpochDone,
    ImagesQuarantined,
    MicroBatchSplit,
    Preempted,
    RunFailed,
    StepDone,
    WorkersStarted,
)
from effnet_ray.train.loop import EpochSizes, fit
from effnet_ray.train.metric_definitions import EVAL_LOSS, EVAL_TOP1, TRAIN_LOSS
from effnet_ray.train.state import Batch, TrainState, initial_state

POST_EVERY_S = 0.5
SAY_S = 2
"""In which worker 0 has told the board what becomes of the run."""

# Batches are views of the object store, which is read-only; nothing writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """All that a worker is told."""

    run: run_record.Run
    run_uri: str
    dataset: Dataset
    placement: Placement
    weights_uri: str | None
    """The pretrained file in the run's storage; None from scratch."""
    board: Any
    """Actor handle of `progress.board`."""
    reports: bool = False
    """Whether somebody hears of epochs by way of Ray Train, for which workers wait."""


def train(config: dict[str, WorkerJob]) -> None:
    """What every Ray Train worker runs; after a failure again, from the newest checkpoint."""
    # Else MKL adds numbers in an order that hangs on where they lie in memory, and with threads
    # a resumed run is not bit-equal. It looks when first called; AUTO costs nothing measurable
    # (MKL's "conditional numerical reproducibility").
    os.environ.setdefault("MKL_CBWR", "AUTO")
    job = config["job"]
    if ray.get(job.board.failed.remote()):
        return  # a worker has given the run up: Ray Train need not try again
    try:
        _train(job)
    except InputError as error:  # data or storage that trying again will not mend
        ray.get(job.board.post.remote(RunFailed(str(error))))
        raise


def _train(job: WorkerJob) -> None:
    held_since = time.perf_counter()
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    neighbours = context.get_local_world_size()
    cores, store_mb = _share(job.placement, neighbours)
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, cores // neighbours))
    state = initial_state(job.run, job.weights_uri, device)
    _resume(state, job, rank)
    state.micro_batch_splits = max(state.micro_batch_splits, ray.get(job.board.pieces.remote()))
    decode_tasks, prefetch_mb = job.placement.decoding(cores, neighbours, store_mb)
    lanes = job.dataset.plan.workers_lanes(rank, workers)
    execute = RayExecutor(decode_tasks, prefetch_mb, local_chunks=len(lanes))
    stream = Stream(
        job.dataset, rank=rank, workers=workers, first_step=state.step, execute=execute
    )
    batches = DeviceBatches(
        stream,
        lanes,
        device,
        several=len(job.run.classes) if job.run.recipe.task == MULTILABEL else 0,
    )
    WorkerLoop(job, rank, workers, batches, state, held_since).run()


def _share(placement: Placement, workers: int) -> tuple[int, float]:
    """Cores and MB of object store that this run's workers on this machine may count on."""
    cores, store_mb = _machine()
    if placement.cores is None:
        return cores, store_mb
    mine = min(cores, placement.cores * workers)
    return mine, store_mb * mine / cores


def _machine() -> tuple[int, float]:
    """Cores and MB of object store, as Ray counts them: a container has less than its host."""
    here = ray.get_runtime_context().get_node_id()
    found: dict[str, float] = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == here)
    # A local Ray is told of more cores than there are where workers are more than cores.
    cores = max(1, min(os.cpu_count() or 1, int(found.get("CPU", 1))))
    return cores, found.get("object_store_memory", math.inf) / 1024**2


def _resume(state: TrainState, job: WorkerJob, rank: int) -> None:
    """Load the newest checkpoint, the same on every worker: worker 0 chooses it."""
    folder = storage.join(job.run_uri, run_record.CHECKPOINTS)
    found = checkpoint.newest(folder) if rank == 0 else None
    step = torch.tensor([found.step if found else -1])
    if rank == 0:
        audit.remove_from(storage.join(job.run_uri, run_record.AUDIT), max(0, int(step)))
        quarantine.remove_from(storage.join(job.run_uri, run_record.QUARANTINE), max(0, int(step)))
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(step, src=0)
    if int(step) >= 0:
        uri = storage.join(folder, checkpoint.folder(int(step)))
        (found or checkpoint.open_checkpoint(uri)).load_into(state)


class DeviceBatches:
    """A Stream's images as batches on the worker's device; measures the waiting."""

    def __init__(
        self, stream: Stream, lanes: Sequence[int], device: torch.device, *, several: int = 0
    ) -> None:
        """`several`: the number of classes where an image may have any number of them."""
        self._stream, self._lanes, self._device = stream, lanes, device
        self._several = several
        self.before_step: Callable[[list[Images]], None] = lambda images: None
        """Called with a step's images before the step begins."""
        self.after_eval: Callable[[list[Images]], None] = lambda images: None
        """Called after an evaluation with its batches that had bad images, without pixels."""
        self.waited_s = 0.0
        self.first_s = math.nan
        """Wait for the epoch's first batch."""

    def train(self, step: int) -> Iterator[Sequence[Batch]]:
        """The epoch's steps from `step` on, as this worker's lanes."""
        self.waited_s, self.first_s = 0.0, math.nan
        for images in self._waiting(self._stream.train(step)):
            self.before_step(images)
            yield [self._batch(part, lane) for part, lane in zip(images, self._lanes, strict=True)]

    def eval(self) -> Iterator[Batch]:
        """This worker's share of the eval split."""
        with_bad: list[Images] = []
        for images in self._waiting(self._stream.eval()):
            if images.bad:
                with_bad.append(replace(images, image=images.image[:0]))
            yield self._batch(images, 0)
        self.after_eval(with_bad)

    def _waiting(self, source: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(source)
        while True:
            begin = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            waited = time.perf_counter() - begin
            self.waited_s += waited
            self.first_s = waited if math.isnan(self.first_s) else self.first_s
            yield item

    def _batch(self, images: Images, lane: int) -> Batch:
        image = torch.from_numpy(images.image)
        if image.ndim == 4:
            image = image.permute(0, 3, 1, 2)  # [B, 3, R, R], channels last
        label, weight = torch.from_numpy(images.label), torch.from_numpy(images.weight)
        if self._several and label.ndim == 1:
            label = F.one_hot(label, self._several).to(torch.uint8)
        if self._device.type == "cuda":  # pinned memory lets the copy overlap with compute
            image, label, weight = image.pin_memory(), label.pin_memory(), weight.pin_memory()
        image, label, weight = (
            t.to(self._device, non_blocking=True) for t in (image, label, weight)
        )
        return Batch(image, label, weight, lane)


class WorkerLoop:
    """Runs the loop and tells of it: board, audit, checkpoints, Ray Train's reports."""

    def __init__(
        self,
        job: WorkerJob,
        rank: int,
        workers: int,
        batches: DeviceBatches,
        state: TrainState,
        held_since: float,
    ) -> None:
        self._job, self._rank, self._workers, self._batches = job, rank, workers, batches
        self._state = state
        self._drain = PreemptionWatch()
        batches.before_step, batches.after_eval = self._before_step, self._after_eval
        self._bad: dict[int, BadImage] = {}
        plan = job.dataset.plan
        self._shape = EpochSizes(
            plan.steps_per_epoch,
            plan.images,
            job.dataset.eval_plan.images,
            max_uses=plan.max_uses,
            class_weights=job.dataset.class_weights,
        )
        folder = storage.join(job.run_uri, run_record.CHECKPOINTS)
        self._writer = checkpoint_writer.CheckpointWriter(folder, job.placement.keep_checkpoints)
        self._held_since, self._spent_before = held_since, state.device_s
        self._begin = self._last_step = self._posted = time.perf_counter()
        self._first_image = state.train_sums.images
        self._pieces = 1
        if rank == 0:
            total = job.run.recipe.epochs * plan.steps_per_epoch
            device = next(state.network.parameters()).device.type
            told = phases.describe(job.run.recipe)
            job.board.post.remote(WorkersStarted(workers, state.step, total, device, told))

    def run(self) -> None:
        """Train to the end. A failure that all workers share ends the run without retries."""
        try:
            ended = fit(
                self._state,
                self._job.run.recipe,
                self._shape,
                self._batches,
                on_step=self._on_step,
                on_epoch=self._on_epoch,
                max_bad_fraction=self._job.placement.max_bad_fraction,
                should_stop=self._drain.is_draining,
            )
            if not ended and self._rank == 0:
                self._save()
                self._writer.wait()
                ray.get(self._job.board.post.remote(Preempted(self._state.step)))
        except torch.OutOfMemoryError:
            self._out_of_memory()
            raise  # Ray Train begins again, if the board does not say that the run has failed
        except TrainingError as error:
            self._tell_of_bad()
            if isinstance(error, NonFiniteError) and not self._stumbles():
                raise  # Ray Train begins again, from the newest checkpoint
            failed = RunFailed(str(error), bad_images=isinstance(error, BadImagesError))
            ray.get(self._job.board.post.remote(failed))
        self._writer.wait()

    def _stumbles(self) -> bool:
        """Whether it is the second time at this step; worker 0 alone says so, and ends the run.

        The others wait for that: Ray Train ends all workers when one raises.
        """
        if self._rank:
            time.sleep(SAY_S)
            return False
        return bool(ray.get(self._job.board.stumbles.remote(self._state.step)))

    def _out_of_memory(self) -> None:
        """Have the next workers divide lanes further; where there is no way, end the run."""
        recipe, state, board = self._job.run.recipe, self._state, self._job.board
        epoch = min(state.step // self._shape.steps_per_epoch, recipe.epochs - 1)
        phase = phases.phase_at(recipe, epoch)
        pieces = oom.splits_after(state.micro_batch_splits, recipe, phase)
        if pieces:
            ray.get(board.divide.remote(pieces))
        else:
            ray.get(board.post.remote(RunFailed(str(oom.does_not_fit(recipe, phase)))))

    def _on_step(self, state: TrainState) -> None:
        self._last_step = time.perf_counter()
        if self._rank == 0 and state.micro_batch_splits > self._pieces:
            self._pieces = state.micro_batch_splits
            self._job.board.post.remote(MicroBatchSplit(state.micro_batch_splits))
        every = self._job.placement.checkpoint_every
        ends_epoch = state.step % self._shape.steps_per_epoch == 0
        if self._rank == 0 and every and state.step % every == 0 and not ends_epoch:
            self._save()
        if self._rank == 0 and self._last_step - self._posted >= POST_EVERY_S:
            self._posted = self._last_step
            self._job.board.post.remote(
                StepDone(state.step, state.train_sums.loss, self._rate(state))
            )

    def _save(self) -> None:
        """A checkpoint, by worker 0."""
        self._state.device_s = self._spent_before + self._device_s()
        self._writer.save(self._state)

    def _device_s(self) -> float:
        """Since these workers were started, of all of them."""
        return self._workers * (time.perf_counter() - self._held_since)

    def _rate(self, state: TrainState) -> float:
        seconds = max(1e-9, self._last_step - self._begin)
        return (state.train_sums.images - self._first_image) / seconds

    def _before_step(self, parts: list[Images]) -> None:
        """Record what the step is about to use, before it can be taken."""
        if self._job.placement.audit:
            self._audit(parts)
        self._quarantine("train", parts, self._state.step)

    def _after_eval(self, parts: list[Images]) -> None:
        self._quarantine("eval", parts, self._state.step - 1)

    def _audit(self, parts: list[Images]) -> None:
        step = self._state.step
        images = [
            (int(image), float(weight))
            for part in parts
            for image, weight in zip(part.id, part.weight, strict=True)
        ]
        audit.write(
            storage.join(self._job.run_uri, run_record.AUDIT),
            epoch=step // self._shape.steps_per_epoch,
            step=step,
            rank=self._rank,
            images=images,
        )

    def _on_epoch(self, report: EpochReport, state: TrainState) -> None:
        now = time.perf_counter()
        trained = report.train_images - self._first_image
        rate = trained / max(1e-9, self._last_step - self._begin)
        timing = EpochDone(
            report=report,
            seconds=now - self._begin,
            images_per_s=rate,
            first_batch_s=self._batches.first_s,
            data_wait_s=self._batches.waited_s,
        )
        if self._rank == 0:
            self._save()
            self._job.board.post.remote(timing)
        self._tell_of_bad()
        if self._job.reports:
            self._report(report, rate)
        self._begin, self._first_image = time.perf_counter(), 0

    def _report(self, report: EpochReport, rate: float) -> None:
        """Tell Ray Train, whose callbacks hear of it.

        It takes one report each time it looks at a worker; until then the next one waits.
        """
        recipe = self._job.run.recipe
        spent = phases.cost(recipe, report.epoch + 1)
        ray.train.report(
            {
                "epoch": report.epoch,
                "step": report.step,
                EVAL_TOP1.key: report.eval_top1,
                EVAL_LOSS.key: report.eval_loss,
                TRAIN_LOSS.key: report.train_loss,
                "train_images_per_s": rate,
                "reached": spent / phases.cost(recipe, recipe.epochs),
                "device_seconds": self._device_s(),
            }
        )

    def _quarantine(self, split: str, parts: list[Images], step: int) -> None:
        """Name the images that this worker could not read in a step, or after its epoch's last."""
        bad = {image: why for part in parts for image, why in part.bad.items()}
        if not bad:
            return
        self._bad |= bad
        quarantine.write(
            storage.join(self._job.run_uri, run_record.QUARANTINE),
            bad,
            split=split,
            epoch=step // self._shape.steps_per_epoch,
            step=step,
            rank=self._rank,
        )

    def _tell_of_bad(self) -> None:
        """Tell the driver of the images quarantined since it was last told."""
        bad, self._bad = self._bad, {}
        if bad:
            named = {image: f"{why.path}: {why.reason}" for image, why in bad.items()}
            self._job.board.post.remote(ImagesQuarantined(named))
