"""Computes the outputs of frozen networks with Ray Data, once for all runs that share them.

Decode tasks load the views, actors with the network compute the features of a run's backbone or
the logits of its teacher, and one process writes them shard by shard. An interrupted computation
continues after the last complete shard.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch

from effnet_ray import storage
from effnet_ray.data import feature_cache
from effnet_ray.data.chunks import Block, ChunkTask, Dataset, load_rows
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.data.row_group_reads import StartedReads, one_ahead
from effnet_ray.errors import EffnetRayError, TrainingError, quote_end
from effnet_ray.placement import Placement
from effnet_ray.runtime.actors import start_local_actor
from effnet_ray.runtime.inference_actors import (
    ActorPool,
    MachineShare,
    batch_images,
    decode_rows,
    encode_row,
    execute,
)
from effnet_ray.runtime.session import ResourceRequest
from effnet_ray.train import checkpoint
from effnet_ray.train.events import ComputingFeatures
from effnet_ray.train.feature_tasks import (
    Computation,
    FeatureTask,
    SplitView,
    computations,
    list_tasks,
    missing_shards,
)
from effnet_ray.train.run_record import Run
from effnet_ray.train.state import initial_network
from effnet_ray.train.worker_job import WorkerJob

POST_EVERY_S = 0.5
"""Seconds between events of progress, as in `worker_loop`."""
ATTEMPTS = 5
"""The features may be computed by another run's driver, which may end before they are complete.
Chosen, not measured."""


def prepare(job: WorkerJob, request: ResourceRequest, channel: Any, *, new: bool) -> None:
    """Make sure that the outputs a run needs exist; a single actor of the cluster computes them.

    `new`: the run has no steps yet and retries images that earlier runs could not read. Raises
    what reading the data set raises, and TrainingError if the computation dies.
    """
    for computation in computations(job, _first_epoch(job)):
        _prepare(computation, job, request, channel, new=new)


def _prepare(
    computation: Computation, job: WorkerJob, request: ResourceRequest, channel: Any, *, new: bool
) -> None:
    what, instead = "its features", "use --no-head-cache"
    if computation.outputs:
        what, instead = "its teacher's logits", "train without --teacher, under another --name"
    for attempt in range(ATTEMPTS):
        retry_bad = new and attempt == 0
        if not missing_shards(computation.dataset, computation.folders, retry_bad=retry_bad):
            return
        name = _actor_name(computation.folders.values())
        computer = start_local_actor(_OutputComputer, name=name)
        arguments = (computation, job.placement, request, channel, retry_bad)
        try:
            ray.get(computer.compute_missing.remote(*arguments))
            return
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EffnetRayError):
                raise error.cause from None
            reason = quote_end(error.cause)
            raise TrainingError(
                f"run {job.run.name!r} failed: {what} cannot be computed "
                f"({type(error.cause).__name__}: {reason}): run the same command again to "
                f"continue, or {instead}"
            ) from error
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            continue  # the actor of another run, which ended
    raise TrainingError(
        f"run {job.run.name!r} failed: computing {what} was interrupted {ATTEMPTS} times "
        f"(killed, or out of memory?): run the same command again to continue, or {instead}"
    )


def _actor_name(folders: Iterable[str]) -> str:
    """Name of the actor that computes these outputs, shared by all runs that need them."""
    return f"effnet-features-{hashlib.sha256(json.dumps([*folders]).encode()).hexdigest()[:16]}"


def _first_epoch(job: WorkerJob) -> int:
    """The epoch in which the run starts or resumes."""
    newest = checkpoint.newest(job.checkpoints_uri)
    return newest.step // job.dataset.plan.steps_per_epoch if newest else 0


class _OutputComputer:
    """Actor that serves one caller at a time: the next one finds the outputs complete."""

    def compute_missing(
        self,
        computation: Computation,
        placement: Placement,
        request: ResourceRequest,
        channel: Any,
        retry_bad: bool,
    ) -> None:
        missing = missing_shards(computation.dataset, computation.folders, retry_bad=retry_bad)
        if missing:
            compute(computation, placement, request, channel, missing)


def compute(
    computation: Computation,
    placement: Placement,
    request: ResourceRequest,
    channel: Any,
    missing: dict[SplitView, list[int]],
) -> None:
    """Compute and write the missing outputs, then mark them as complete.

    Raises what reading the data set raises.
    """
    dataset = computation.dataset
    max_images = batch_images(dataset.recipe, dataset.spec.resolution)
    tasks = list(list_tasks(dataset, missing, max_images))
    images = sum(task.end - task.first for task in tasks)
    post_progress = _progress_poster(channel, images, of_teacher=bool(computation.outputs))
    executed = _execute(computation, placement, request, tasks) if tasks else iter(())
    blocks = unwrap_errors(executed)
    done = 0
    pairs = zip(tasks, blocks, strict=True)
    for (split, view, shard), shard_pairs in itertools.groupby(pairs, lambda pair: pair[0].file):
        parts = []
        for _, block in shard_pairs:
            parts.append(_feature_rows(block, split))
            done += len(parts[-1].label)
            post_progress(done)
        name = feature_cache.file_name(shard)
        feature_cache.write(storage.join(computation.folders[split, view], name), parts)
    for split, view in missing:
        names = map(feature_cache.file_name, range(len(dataset.manifest.splits[split])))
        feature_cache.write_record(computation.folders[split, view], names)


def _progress_poster(channel: Any, images: int, *, of_teacher: bool) -> Callable[[int], None]:
    """A function that posts the number of finished images, at most every POST_EVERY_S."""
    last = -math.inf

    def post(done: int) -> None:
        nonlocal last
        if done == images or time.monotonic() - last >= POST_EVERY_S:
            last = time.monotonic()
            channel.post.remote(ComputingFeatures(done, images, of_teacher))

    if images:  # otherwise only the record was missing
        post(0)
    return post


def _feature_rows(block: Block, split: str) -> FeatureRows:
    """A block as the cache stores it."""
    dtype = np.float16 if split == "train" else np.float32
    return FeatureRows(
        block["feature"].astype(dtype), block["label"], block["id"], block["bad"].tolist()
    )


def _execute(
    computation: Computation,
    placement: Placement,
    request: ResourceRequest,
    tasks: Sequence[FeatureTask],
) -> Iterator[Block]:
    """Run all tasks in one Ray Data execution; yields their outputs in order."""
    dataset, actors = computation.dataset, ActorPool.of(placement, request, len(tasks))

    def load_views(batch: Block) -> Iterator[Block]:
        with dataset.row_group_reads() as reads:
            units = (
                [FeatureTask(**task) for task in json.loads(encoded)]
                for encoded in batch["tasks"].tolist()
            )
            started = ((unit, reads.start(unit[0].split, [unit[0].group])) for unit in units)
            for unit, groups in one_ahead(started):
                for task in unit:
                    yield _load_views(dataset, task, groups)

    # A row group's tasks are one row, so that it is read only once.
    grouped = itertools.groupby(tasks, lambda task: task.row_group)
    rows = [{"tasks": json.dumps([asdict(task) for task in group])} for _, group in grouped]
    arguments = (computation.run, computation.weights_uri, computation.outputs, actors.share)
    for block in execute(rows, load_views, _FrozenNetwork, arguments, actors):
        for metadata, arrays in decode_rows(block):
            yield arrays | _columns(metadata)


def _load_views(dataset: Dataset, task: FeatureTask, groups: StartedReads) -> Block:
    """A task's images as a single row: Ray Data splits blocks between rows."""
    rows = np.asarray([(task.group, row, 0) for row in range(task.first, task.end)], np.int64)
    chunk = ChunkTask(task.split, 0, 0, 0, 0, view=task.view)
    block = load_rows(dataset, chunk, rows, groups)
    metadata = {name: block[name].tolist() for name in ("label", "id", "bad")}
    return encode_row(metadata, image=block["image"])


def _columns(metadata: dict[str, Any]) -> Block:
    """The labels, ids and errors of a row's images as arrays."""
    label = np.asarray(metadata["label"], np.int64)
    return {
        "label": label if label.ndim == 1 else label.astype(np.uint8),
        "id": np.asarray(metadata["id"], np.int64),
        "bad": np.asarray(metadata["bad"], object),
    }


class _FrozenNetwork:
    """Actor with the network, on a worker's share of a machine."""

    def __init__(
        self, run: Run, weights_uri: str | None, outputs: tuple[int, ...], share: MachineShare
    ) -> None:
        """`outputs`: as in `Computation`."""
        self._outputs = list(outputs)
        self._device = share.device()
        self._network = initial_network(run, weights_uri).to(self._device).eval()
        self._precision = getattr(torch, run.recipe.precision or "float32")

    @torch.no_grad()
    def __call__(self, batch: Block) -> Iterator[Block]:
        """The features, or the logits, of each row's images; NaN logits for unreadable ones."""
        for metadata, arrays in decode_rows(batch):
            images = torch.from_numpy(np.asarray(arrays["image"])).permute(0, 3, 1, 2)
            half = self._precision != torch.float32
            with torch.autocast(self._device.type, self._precision if half else None, half):
                features, logits = self._network.features_and_logits(images.to(self._device))
            computed = (logits[:, self._outputs] if self._outputs else features).float()
            if self._outputs:
                computed[[bool(reason) for reason in metadata["bad"]]] = torch.nan
            yield encode_row(metadata, feature=computed.cpu().numpy())
