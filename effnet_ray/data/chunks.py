"""One chunk of the plan as arrays: views of images, or the features kept of them.

What a Ray Data task does. What cannot be read has weight 0, and a reason.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray import storage
from effnet_ray.data import feature_cache as features
from effnet_ray.data.class_balance import Labels, class_weights
from effnet_ray.data.decode import decode
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.plan import EvalPlan, Plan, Rows, image_random
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.views import eval_view, train_view
from effnet_ray.errors import ImageError
from effnet_ray.recipe import Recipe
from effnet_ray.tasks import MULTICLASS
from effnet_ray.variants import InputSpec

BLOCK_BYTES = 32 * 1024**2
"""A task hands on its chunk in pieces of about this size: 600 px views weigh 1 MB each."""
Block = dict[str, npt.NDArray[Any]]
"""`image` [n, R, R, 3] uint8 or features [n, F], `label` [n] int64 or, where images may have
several, [n, K] uint8 of 0 and 1, `id`, `bad`."""


@dataclass(frozen=True, slots=True)
class BadImage:
    """A quarantined image."""

    path: str
    """In the source that was packed."""
    reason: str
    digest: str
    """SHA-256 of the bytes that were packed."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All a decode task needs to know; sent to the cluster once per window."""

    manifest: Manifest
    data: str
    """URI of the manifest's folder."""
    recipe: Recipe
    """Settled."""
    spec: InputSpec
    labels: Labels | None = None
    """Of the train split, where the recipe needs them (`Recipe.needs_labels`)."""
    features: str = ""
    """Where features are kept: RUNS/features."""
    backbone: str = ""
    """SHA-256 of the pretrained file, of which they are."""

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Of the recipe, for each class; empty where all images count alike."""
        return class_weights(self.labels.counts, self.recipe.class_weights) if self.labels else ()

    @property
    def plan(self) -> Plan:
        """The train split's plan."""
        rows = tuple(rows for _, _, rows in self.manifest.row_groups("train"))
        recipe = self.recipe
        return Plan(rows, recipe.seed, recipe.batch_size, recipe.micro_batch or 1, self.labels,
                    recipe.balance)  # fmt: skip

    @property
    def eval_plan(self) -> EvalPlan:
        """The eval split's plan."""
        return EvalPlan(tuple(rows for _, _, rows in self.manifest.row_groups("eval")))

    def features_uri(self, split: str, view: int | None) -> str:
        """The folder of a split's cached features of a view (by number; None: the eval view)."""
        return features.folder(
            self.features, self.backbone, self.manifest, self.recipe, self.spec, split, view
        )


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """One chunk to fetch."""

    split: str
    epoch: int
    lane: int
    chunk: int
    skip_steps: int
    """Steps of the chunk that a resumed run has taken already: never read."""
    rows: int = 0
    """Images left then: the stream counts them."""
    view: int | None = None
    """Number of the random view; None: the eval view."""
    new_view_per_use: bool = True
    """Whether an image that the epoch uses again gets another random view."""
    size: int = 0
    """Of the views, px; 0: the input spec's."""
    cached: bool = False
    """Whether their features are wanted, which are there."""


ChunkExecutor = Callable[[Dataset, Iterator[ChunkTask]], Iterator[Block]]
"""Loads the chunks of all tasks and yields their blocks in task order."""


def load_chunk(dataset: Dataset, task: ChunkTask) -> Iterator[Block]:
    """Read, check, decode and view one chunk, in pieces. Runs in a Ray Data task."""
    if task.split == "train":
        rows = dataset.plan.chunk(task.epoch, task.lane, task.chunk, skip_steps=task.skip_steps)
        if not task.new_view_per_use:
            rows[:, 2] = 0
    else:
        rows = dataset.eval_plan.chunk(task.chunk)
    if task.cached:
        if len(rows):
            yield _kept(dataset, task, rows)
        return
    piece = max(1, BLOCK_BYTES // (3 * dataset.spec.resolution**2))
    # The first step's images go ahead: at a run's start they are waited for.
    ahead = min(piece, dataset.recipe.micro_batch or piece)
    groups: dict[int, RowGroup] = {}
    for part in np.split(rows, range(ahead, len(rows), piece)):
        if len(part):
            yield load_rows(dataset, task, part, groups)


def _kept(dataset: Dataset, task: ChunkTask, rows: Rows) -> Block:
    """The features of some rows, at least one."""
    uri, places = (
        dataset.features_uri(task.split, task.view),
        features.row_group_places(dataset.manifest, task.split),
    )
    shard, first = places[rows[:, 0]].T
    group, row = np.divmod(first + rows[:, 1], features.ROWS)
    wanted, whose = np.unique(np.stack([shard, group], 1), axis=0, return_inverse=True)
    parts, order = list[Block](), np.argsort(whose, kind="stable")
    for number, (of, part) in enumerate(wanted.tolist()):
        found = features.read(storage.join(uri, features.file_name(of)), part)
        mine = row[whose == number]
        bad = np.asarray(found.bad, object)
        parts.append({"image": found.feature[mine], "label": found.label[mine],
                      "id": found.id[mine], "bad": bad[mine]})  # fmt: skip
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}


def load_rows(dataset: Dataset, task: ChunkTask, rows: Rows, groups: dict[int, RowGroup]) -> Block:
    """The views of some rows; `groups` keeps the chunk's row groups between pieces."""
    size = task.size or dataset.spec.resolution
    image = np.zeros((len(rows), size, size, 3), np.uint8)
    columns: dict[str, list[Any]] = {"label": [], "id": [], "bad": []}
    for slot, (group, row, use) in enumerate(rows.tolist()):
        if group not in groups:
            groups[group] = RowGroup(
                dataset.manifest, dataset.data, task.split, group,
                limited=dataset.recipe.limit is not None,
            )  # fmt: skip
        record = groups[group].record(row)
        columns["label"].append(record["label"])
        columns["id"].append(record["id"])
        try:
            if not record["as_packed"]:
                raise ImageError("its bytes are not those that were packed (SHA-256 differs)")
            image[slot] = _view(dataset, task, record, use)
            columns["bad"].append("")
        except ImageError as error:
            bad = BadImage(record["image"]["path"], str(error), record["digest"])
            columns["bad"].append(json.dumps(asdict(bad)))
    return {
        "image": image,
        "label": _labels(columns["label"], dataset.manifest),
        "id": np.asarray(columns["id"], np.int64),
        "bad": np.asarray(columns["bad"], object),
    }


def _labels(found: list[Any], manifest: Manifest) -> npt.NDArray[Any]:
    """Labels of images, as a block holds them."""
    if manifest.task == MULTICLASS:
        return np.asarray(found, np.int64)
    several = np.zeros((len(found), len(manifest.classes)), np.uint8)
    for row, classes in enumerate(found):
        several[row, classes] = 1
    return several


def _view(
    dataset: Dataset, task: ChunkTask, record: dict[str, Any], use: int
) -> npt.NDArray[np.uint8]:
    """The planned view of one image in its `use` of the epoch, from 0."""
    data = record["image"]["bytes"]
    if task.view is None:
        return eval_view(decode(data), dataset.spec)
    random = image_random(dataset.recipe.seed, task.view, record["id"], use)
    spec = replace(dataset.spec, resolution=task.size or dataset.spec.resolution)
    return train_view(data, spec, dataset.recipe, random)
