"""Loads chunks of the plan as arrays: views of images, decoded here on CPUs, or features.

An executor calls `load_chunks` in its tasks. An image that cannot be read has a reason and no
pixels.

`load_rows` returns decoded uint8 views, and `train.device_batches` moves them to the device. To
decode on a GPU, let `load_rows` return encoded images with their crop boxes and flips, which
`data.views` draws, and decode them in `train.device_batches`; bad images must be known there.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray import storage
from effnet_ray.data import feature_cache
from effnet_ray.data.class_balance import Labels, class_weights
from effnet_ray.data.classes import Label
from effnet_ray.data.decode import Pixels
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.plan import EvalPlan, Plan, Rows, image_random
from effnet_ray.data.row_group import ImageRecord
from effnet_ray.data.row_group_reads import RowGroupReads, StartedReads, one_ahead
from effnet_ray.data.views import train_view, write_eval_view
from effnet_ray.errors import ImageError
from effnet_ray.recipe import MULTICLASS, Recipe
from effnet_ray.variants import InputSpec

TEACHER = "teacher"
"""Column of a block."""
BLOCK_BYTES = 32 * 1024**2
"""A chunk is yielded in blocks of about this size: views of 600 px weigh 1 MB each. Chosen,
not measured."""

Block = dict[str, npt.NDArray[Any]]
"""`image` [n, R, R, 3] uint8 or features [n, F]; `label` [n] int64 or, in a multilabel data set,
[n, K] uint8 of 0 and 1; `id` [n]; `bad` [n]: JSON of `BadImage`, or empty. Images of a run
with a teacher have its logits, `teacher` [n, K] float16: NaN for eval images."""


@dataclass(frozen=True, slots=True)
class BadImage:
    """A quarantined image."""

    path: str
    """Path in the source that was packed."""
    reason: str
    digest: str
    """SHA-256 of the bytes that were packed."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything that loading a chunk needs; sent to the cluster once per window."""

    manifest: Manifest
    data: str
    """URI of the manifest's folder."""
    recipe: Recipe
    """The resolved recipe."""
    spec: InputSpec
    labels: Labels | None = None
    """The train split's labels, if the recipe needs them (`Recipe.needs_labels`)."""
    features: str = ""
    """URI of the feature cache: RUNS/features."""
    backbone: str = ""
    """SHA-256 of the pretrained file that computes the features."""
    teacher: str = ""
    """URI of the folder with the teacher's logits of the train split; empty without a teacher."""

    @property
    def class_weights(self) -> tuple[float, ...]:
        """The recipe's loss weight of each class; empty if all images count alike."""
        return class_weights(self.labels.counts, self.recipe.class_weights) if self.labels else ()

    @property
    def plan(self) -> Plan:
        """The train split's plan."""
        return Plan(
            self.manifest.index("train"),
            self.recipe.seed,
            self.recipe.lanes * (self.recipe.micro_batch or 1),
            self.recipe.micro_batch or 1,
            self.labels,
            self.recipe.balance,
        )

    @property
    def eval_plan(self) -> EvalPlan:
        """The eval split's plan."""
        return EvalPlan(self.manifest.index("eval"))

    def row_group_reads(self) -> RowGroupReads:
        """Threads that read its row groups; a context manager."""
        return RowGroupReads(self.manifest, self.data, limited=self.recipe.limit is not None)

    def features_uri(self, split: str, view: int | None) -> str:
        """The folder of a split's cached features of a view (by number; None: the eval view)."""
        return feature_cache.folder(
            self.features,
            backbone=self.backbone,
            manifest=self.manifest,
            recipe=self.recipe,
            spec=self.spec,
            split=split,
            view=view,
        )


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """One chunk to load. All fields are JSON values."""

    split: str
    epoch: int
    lane: int
    chunk: int
    skip_steps: int
    """The chunk's first steps that a resumed run has already used: not read again."""
    rows: int = 0
    """Images in the chunk after the skipped steps; the stream counts by it."""
    view: int | None = None
    """Number of the random view; None: the eval view."""
    new_view_per_use: bool = True
    """Whether an image that the epoch uses again gets another random view."""
    size: int = 0
    """Size of the views, px; 0: the input spec's."""
    cached: bool = False
    """Load features from the feature cache instead of images."""


ChunkExecutor = Callable[[Dataset, Iterator[ChunkTask]], Iterator[Block]]
"""Loads the chunks of all tasks and yields their blocks in task order."""


def load_chunks(dataset: Dataset, tasks: Iterable[ChunkTask]) -> Iterator[Block]:
    """Read, verify and decode chunks and draw their views, in blocks of about `BLOCK_BYTES`.

    The next chunk is read while one is decoded. Raises DatasetError and StorageError.
    """
    with dataset.row_group_reads() as reads:
        for chunk in one_ahead(_start(dataset, task, reads) for task in tasks):
            yield from _load(dataset, chunk)


@dataclass(frozen=True, slots=True)
class _StartedChunk:
    """A chunk whose row groups are being read."""

    task: ChunkTask
    rows: Rows
    groups: StartedReads


def _start(dataset: Dataset, task: ChunkTask, reads: RowGroupReads) -> _StartedChunk:
    """Plan a chunk and start to read its row groups."""
    if task.split == "train":
        rows = dataset.plan.chunk(task.epoch, task.lane, task.chunk, skip_steps=task.skip_steps)
        if not task.new_view_per_use:
            rows[:, 2] = 0
    else:
        rows = dataset.eval_plan.chunk(task.chunk)
    # In the order of need; `dict` keeps it.
    groups = [] if task.cached else dict.fromkeys(rows[:, 0].tolist())
    return _StartedChunk(task, rows, reads.start(task.split, groups))


def _load(dataset: Dataset, chunk: _StartedChunk) -> Iterator[Block]:
    """The blocks of a chunk."""
    task, rows = chunk.task, chunk.rows
    if task.cached:
        if len(rows):
            yield _with_teacher(dataset, task, rows, _load_features(dataset, task, rows))
        return
    block_rows = max(1, BLOCK_BYTES // (3 * dataset.spec.resolution**2))
    # The first step's images come first: a run's start waits for them.
    first_rows = min(block_rows, dataset.recipe.micro_batch or block_rows)
    for part in np.split(rows, range(first_rows, len(rows), block_rows)):
        if len(part):
            block = load_rows(dataset, task, part, chunk.groups)
            yield _with_teacher(dataset, task, part, block)


def _with_teacher(dataset: Dataset, task: ChunkTask, rows: Rows, block: Block) -> Block:
    """The block of these rows, with the teacher's logits if the run trains with them."""
    if not dataset.teacher:
        return block
    if task.split != "train":  # Ray Data needs the same columns in all blocks of an execution
        shape = len(rows), len(dataset.manifest.classes)
        return block | {TEACHER: np.full(shape, np.nan, np.float16)}
    return block | {TEACHER: _read_cached(dataset, "train", dataset.teacher, rows)["image"]}


def _load_features(dataset: Dataset, task: ChunkTask, rows: Rows) -> Block:
    """The cached features of some rows, at least one."""
    return _read_cached(dataset, task.split, dataset.features_uri(task.split, task.view), rows)


def _read_cached(dataset: Dataset, split: str, uri: str, rows: Rows) -> Block:
    """Some rows, at least one, of a folder of the feature cache; its outputs as `image`."""
    shard, first = dataset.manifest.index(split).shards(rows[:, 0])
    group, row = np.divmod(first + rows[:, 1], feature_cache.ROW_GROUP_ROWS)
    groups, group_index = np.unique(np.stack([shard, group], 1), axis=0, return_inverse=True)
    parts = list[Block]()
    for number, (shard_number, group_number) in enumerate(groups.tolist()):
        file = storage.join(uri, feature_cache.file_name(shard_number))
        cached = feature_cache.read(file, group_number)
        selected = row[group_index == number]
        parts.append(
            {
                "image": cached.feature[selected],
                "label": cached.label[selected],
                "id": cached.id[selected],
                "bad": np.asarray(cached.bad, object)[selected],
            }
        )
    # The parts are ordered by group: put their rows back into planned order.
    planned = np.argsort(np.argsort(group_index, kind="stable"), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[planned] for name in parts[0]}


def load_rows(dataset: Dataset, task: ChunkTask, rows: Rows, groups: StartedReads) -> Block:
    """The decoded uint8 views of some rows of these row groups."""
    size = task.size or dataset.spec.resolution
    image = np.zeros((len(rows), size, size, 3), np.uint8)
    label, ids, bad = list[Label](), list[int](), list[str]()
    for view, (group, row, use) in zip(image, rows.tolist(), strict=True):
        record = groups[group].result().record(row)
        reason = _write_view(dataset, task, record, use, view)
        label.append(record.label)
        ids.append(record.id)
        bad.append(_bad_json(record, reason) if reason else "")
    return {
        "image": image,
        "label": _label_array(label, dataset.manifest),
        "id": np.asarray(ids, np.int64),
        "bad": np.asarray(bad, object),
    }


def _write_view(
    dataset: Dataset, task: ChunkTask, record: ImageRecord, use: int, view: Pixels
) -> str:
    """Write the planned view of an image into `view`; returns why it could not, or "".

    `use` counts the image's uses in the epoch, from 0.
    """
    if task.view is None:
        _, reason = write_eval_view(record.data, dataset.spec, view)
        return reason
    if isinstance(record.data, ImageError):
        return str(record.data)
    random = image_random(dataset.recipe.seed, task.view, record.id, use)
    spec = replace(dataset.spec, resolution=task.size or dataset.spec.resolution)
    try:
        view[:] = train_view(record.data, spec, dataset.recipe, random)
    except ImageError as error:
        return str(error)
    return ""


def _bad_json(record: ImageRecord, reason: str) -> str:
    return json.dumps(asdict(BadImage(record.path, reason, record.digest)))


def _label_array(labels: list[Label], manifest: Manifest) -> npt.NDArray[Any]:
    """The labels of some images as in a block."""
    if manifest.task == MULTICLASS:
        return np.asarray(labels, np.int64)
    array = np.zeros((len(labels), len(manifest.classes)), np.uint8)
    for row, classes in enumerate(labels):
        array[row, classes] = 1
    return array
