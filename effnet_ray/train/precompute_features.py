"""Computing a frozen backbone's features, once for all who need them, by Ray Data.

Decode tasks make the views, actors that each hold the network on what a worker would lease turn
them into features, and one process writes these, shard by shard; so what is interrupted goes on
from the last whole shard. An image's batch is always the same: pieces of its row group.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import torch

from effnet_ray import phases, storage
from effnet_ray.data import feature_cache
from effnet_ray.data.chunks import Block, ChunkTask, Dataset, load_rows
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.data.row_group import RowGroup
from effnet_ray.errors import EffnetRayError, TrainingError
from effnet_ray.recipe import Recipe
from effnet_ray.runtime.actors import start_local_actor
from effnet_ray.runtime.inference_actors import (
    MAX_REASON_CHARS,
    ActorPool,
    MachineShare,
    batch_images,
    decode_rows,
    encode_row,
    execute,
)
from effnet_ray.runtime.session import ResourceRequest
from effnet_ray.train import checkpoint, run_record
from effnet_ray.train.events import ComputingFeatures
from effnet_ray.train.run_record import Run
from effnet_ray.train.state import initial_network
from effnet_ray.train.worker import WorkerJob

POST_EVERY_S = 0.5
ATTEMPTS = 5
"""Another run's driver may compute what this one waits for, and end."""


@dataclass(frozen=True, slots=True)
class FeatureTask:
    """Some rows of one row group, which go through the network together."""

    split: str
    view: int | None
    shard: int
    """Its number in the split."""
    group: int
    """The row group's number in the split."""
    first: int
    end: int

    @property
    def file(self) -> tuple[str, int | None, int]:
        """Whose features stand in one file."""
        return self.split, self.view, self.shard


def wanted(recipe: Recipe) -> list[tuple[str, int | None]]:
    """(split, view) of all features that a run needs; none where no epoch goes by them."""
    epochs = [epoch for epoch in range(recipe.epochs) if phases.uses_feature_cache(recipe, epoch)]
    views = {phases.view_at(recipe, epoch) for epoch in epochs}
    train = sorted(views, key=lambda view: -1 if view is None else view)
    return [*(("train", view) for view in train), *([("eval", None)] if epochs else [])]


def missing(dataset: Dataset, *, heal: bool) -> dict[tuple[str, int | None], list[int]]:
    """Numbers of the shards whose features are not there, for each (split, view) that lacks some.

    `heal`: those of shards with images that could not be read are missing too.
    """
    found = {}
    for split, view in wanted(dataset.recipe):
        uri = dataset.features_uri(split, view)
        count = len(dataset.manifest.splits[split])
        known = feature_cache.read_record(uri)
        if known is None:
            there = {
                name: {"bad": feature_cache.bad_images(storage.join(uri, name)) if heal else 0}
                for name in storage.sizes(uri)
                if name.endswith(".parquet")
            }
        else:
            there = known
        good = {name for name, file in there.items() if not (heal and file["bad"])}
        lacking = [n for n in range(count) if feature_cache.file_name(n) not in good]
        if lacking or known is None:
            found[split, view] = lacking
    return found


def compute(
    job: WorkerJob, lease: ResourceRequest, lacking: dict[tuple[str, int | None], list[int]]
) -> None:
    """Compute and write what is missing, and record that it is whole.

    Raises what reading the data set raises.
    """
    pieces = list(_pieces(job.dataset, lacking))
    tell = _telling(job.board, sum(piece.end - piece.first for piece in pieces))
    found = unwrap_errors(_execute(job, lease, pieces)) if pieces else iter(())
    done = 0
    pairs = zip(pieces, found, strict=True)
    for (split, view, shard), rows in itertools.groupby(pairs, lambda pair: pair[0].file):
        parts = []
        for _, block in rows:
            parts.append(_group(block, split))
            done += len(parts[-1].label)
            tell(done)
        name = feature_cache.file_name(shard)
        feature_cache.write(storage.join(job.dataset.features_uri(split, view), name), parts)
    for split, view in lacking:
        shards = range(len(job.dataset.manifest.splits[split]))
        feature_cache.write_record(
            job.dataset.features_uri(split, view), map(feature_cache.file_name, shards)
        )


def _telling(board: Any, images: int) -> Callable[[int], None]:
    """Tells the board how many are done, now and then."""
    last = -math.inf

    def tell(done: int) -> None:
        nonlocal last
        if done == images or time.monotonic() - last >= POST_EVERY_S:
            last = time.monotonic()
            board.post.remote(ComputingFeatures(done, images))

    if images:  # else only the record was missing
        tell(0)
    return tell


def _pieces(
    dataset: Dataset, lacking: dict[tuple[str, int | None], list[int]]
) -> Iterator[FeatureTask]:
    most = batch_images(dataset.recipe, dataset.spec.resolution)
    for (split, view), shards in lacking.items():
        rows = [count for _, _, count in dataset.manifest.row_groups(split)]
        for group, (shard, _) in enumerate(
            feature_cache.row_group_places(dataset.manifest, split).tolist()
        ):
            if shard in shards:
                for first in range(0, rows[group], most):
                    end = min(first + most, rows[group])
                    yield FeatureTask(split, view, shard, group, first, end)


def _group(block: Block, split: str) -> FeatureRows:
    """A piece as it is kept."""
    kind = np.float16 if split == "train" else np.float32
    return FeatureRows(
        block["feature"].astype(kind), block["label"], block["id"], block["bad"].tolist()
    )


def _execute(
    job: WorkerJob, lease: ResourceRequest, pieces: Sequence[FeatureTask]
) -> Iterator[Block]:
    """One Ray Data execution over all pieces; their features, in order."""
    dataset, actors = job.dataset, ActorPool.of(job.placement, lease, len(pieces))

    def views(batch: Block) -> Iterator[Block]:
        for described in batch["pieces"].tolist():
            groups: dict[int, RowGroup] = {}
            for piece in json.loads(described):
                yield _views(dataset, FeatureTask(**piece), groups)

    # A row group is read once, whatever the number of its pieces.
    alike = itertools.groupby(pieces, lambda piece: (*piece.file, piece.group))
    described = [{"pieces": json.dumps([asdict(p) for p in some])} for _, some in alike]
    told = (job.run, job.weights_uri, actors.share)
    blocks = execute(described, views, _Backbone, told, actors)
    for block in blocks:
        for metadata, arrays in decode_rows(block):
            yield arrays | _columns(metadata)


def _views(dataset: Dataset, piece: FeatureTask, groups: dict[int, RowGroup]) -> Block:
    """A piece as one row, whatever its size: Ray Data cuts blocks between rows."""
    rows = np.asarray([(piece.group, row, 0) for row in range(piece.first, piece.end)], np.int64)
    task = ChunkTask(piece.split, 0, 0, 0, 0, view=piece.view)
    block = load_rows(dataset, task, rows, groups)
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


class _Backbone:
    """An actor with the network, on a worker's share of a machine."""

    def __init__(self, run: Run, weights_uri: str | None, share: MachineShare) -> None:
        self._device = share.device()
        self._network = initial_network(run, weights_uri).to(self._device).eval()
        self._precision = getattr(torch, run.recipe.precision or "float32")

    @torch.no_grad()
    def __call__(self, batch: Block) -> Iterator[Block]:
        """The features of every piece."""
        for metadata, arrays in decode_rows(batch):
            pixels = (
                torch.from_numpy(np.asarray(arrays["image"])).permute(0, 3, 1, 2).to(self._device)
            )
            half = self._precision != torch.float32
            with torch.autocast(self._device.type, self._precision if half else None, half):
                found = self._network.features(pixels)
            yield encode_row(metadata, feature=found.float().cpu().numpy())


class _Once:
    """Computes features for whoever asks, one after the other: the next finds them there."""

    def prepare(self, job: WorkerJob, lease: ResourceRequest, heal: bool) -> None:
        """Compute what is missing."""
        lacking = missing(job.dataset, heal=heal)
        if lacking:
            compute(job, lease, lacking)


def prepare(job: WorkerJob, lease: ResourceRequest, *, new: bool) -> None:
    """See to it that the features are there that the run needs; one driver computes them.

    `new`: the run has not begun, and may look again at images that earlier ones could not read.
    Raises what reading the data set raises, TrainingError where those who compute die.
    """
    for attempt in range(ATTEMPTS):
        heal = new and attempt == 0
        if not missing(job.dataset, heal=heal) or _past_the_head(job):
            return
        once = start_local_actor(_Once, name=_name(job.dataset))
        try:
            ray.get(once.prepare.remote(job, lease, heal))
            return
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EffnetRayError):
                raise error.cause from None
            why = " ".join(str(error.cause).split())[-MAX_REASON_CHARS:]
            raise TrainingError(
                f"run {job.run.name!r} failed: its features cannot be computed "
                f"({type(error.cause).__name__}: {why}): run the same command again to go on, or "
                "use --no-head-cache"
            ) from error
        except ray.exceptions.RayActorError:
            continue  # another run's, which has ended
    raise TrainingError(
        f"run {job.run.name!r} failed: computing its features was broken off {ATTEMPTS} times "
        "(killed, or out of memory?): run the same command again to go on, or use --no-head-cache"
    )


def _name(dataset: Dataset) -> str:
    """Of the actor that computes what such a run needs: one for all that need the same."""
    folders = [dataset.features_uri(split, view) for split, view in wanted(dataset.recipe)]
    return f"effnet-features-{hashlib.sha256(json.dumps(folders).encode()).hexdigest()[:16]}"


def _past_the_head(job: WorkerJob) -> bool:
    """Whether the run will resume after all epochs that go by features."""
    found = checkpoint.newest(storage.join(job.run_uri, run_record.CHECKPOINTS))
    epoch = found.step // job.dataset.plan.steps_per_epoch if found else 0
    return not any(
        phases.uses_feature_cache(job.run.recipe, later)
        for later in range(epoch, job.run.recipe.epochs)
    )
