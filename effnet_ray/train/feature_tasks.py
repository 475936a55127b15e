"""Which outputs of frozen networks a run needs, and the tasks that compute missing ones.

They are the features of its own backbone, for linear probing, and the logits of its teacher.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from effnet_ray import phases, storage
from effnet_ray.data import feature_cache
from effnet_ray.data.chunks import Dataset
from effnet_ray.recipe import Recipe
from effnet_ray.train.run_record import Run
from effnet_ray.train.worker_job import WorkerJob

SplitView = tuple[str, int | None]
"""A split and the number of a view of its images; None is the eval view."""


@dataclass(frozen=True, slots=True)
class Computation:
    """Outputs of one network that a run needs."""

    dataset: Dataset
    """The images, as they are preprocessed for this network."""
    folders: Mapping[SplitView, str]
    """Where the outputs for each view are kept."""
    run: Run
    """What the network is built from."""
    weights_uri: str | None
    outputs: tuple[int, ...] = ()
    """The logits to keep, one for each class of the data set; empty: the features."""


def computations(job: WorkerJob, first_epoch: int = 0) -> list[Computation]:
    """All outputs that a run needs from an epoch on."""
    found, recipe = list[Computation](), job.run.recipe
    epochs = range(first_epoch, recipe.epochs)
    if any(phases.uses_feature_cache(recipe, epoch) for epoch in epochs):
        folders = feature_folders(job.dataset)
        found.append(Computation(job.dataset, folders, job.run, job.weights_uri))
    teacher = job.run.teacher
    if teacher and epochs:
        own = teacher.recipe(recipe)
        run = replace(
            job.run, recipe=own, spec=teacher.spec, classes=teacher.classes,
            weights_head=len(teacher.classes),
        )  # fmt: skip
        dataset = replace(job.dataset, recipe=own, spec=teacher.spec, labels=None, teacher="")
        folders = {("train", None): job.dataset.teacher}
        outputs = teacher.outputs(job.run.classes)
        found.append(Computation(dataset, folders, run, job.teacher_uri, outputs))
    return found


@dataclass(frozen=True, slots=True)
class FeatureTask:
    """Rows of one row group that the network processes as one batch."""

    split: str
    view: int | None
    shard: int
    """Index of the shard in the split."""
    group: int
    """Index of the row group in the split."""
    first: int
    end: int

    @property
    def file(self) -> tuple[str, int | None, int]:
        """Identifies the file that the features are written to."""
        return self.split, self.view, self.shard

    @property
    def row_group(self) -> tuple[str, int | None, int, int]:
        """Identifies the row group that the images are read from."""
        return *self.file, self.group


def required_views(recipe: Recipe) -> list[SplitView]:
    """All features that a run needs; empty if no epoch uses the feature cache."""
    epochs = [epoch for epoch in range(recipe.epochs) if phases.uses_feature_cache(recipe, epoch)]
    views = {phases.view_at(recipe, epoch) for epoch in epochs}
    train = sorted(views, key=lambda view: -1 if view is None else view)
    return [*(("train", view) for view in train), *([("eval", None)] if epochs else [])]


def feature_folders(dataset: Dataset) -> dict[SplitView, str]:
    """Where all features that a run needs are kept."""
    views = required_views(dataset.recipe)
    return {(split, view): dataset.features_uri(split, view) for split, view in views}


def missing_shards(
    dataset: Dataset, folders: Mapping[SplitView, str], *, retry_bad: bool
) -> dict[SplitView, list[int]]:
    """Indexes of the shards without outputs, for each split and view that is incomplete.

    With `retry_bad`, shards with images that could not be read count as missing, too.
    """
    missing = {}
    for (split, view), uri in folders.items():
        record = feature_cache.read_record(uri)
        files = _unrecorded_files(uri, retry_bad) if record is None else record
        good = {name for name, file in files.items() if not (retry_bad and file["bad"])}
        shards = [
            shard
            for shard in range(len(dataset.manifest.splits[split]))
            if feature_cache.file_name(shard) not in good
        ]
        if shards or record is None:
            missing[split, view] = shards
    return missing


def _unrecorded_files(uri: str, count_bad: bool) -> dict[str, dict[str, int]]:
    """The files of a folder that is not complete, in the form of a record."""
    return {
        name: {"bad": feature_cache.bad_images(storage.join(uri, name)) if count_bad else 0}
        for name in storage.sizes(uri)
        if name.endswith(".parquet")
    }


def list_tasks(
    dataset: Dataset, missing: dict[SplitView, list[int]], max_images: int
) -> Iterator[FeatureTask]:
    """Tasks of at most `max_images` images for the missing shards, in file order.

    The batches of a row group are always the same, so features do not depend on interruptions.
    """
    for (split, view), shards in missing.items():
        index = dataset.manifest.index(split)
        for shard in shards:
            for group in range(*index.first_groups[shard : shard + 2].tolist()):
                rows = int(index.sizes[group])
                for first in range(0, rows, max_images):
                    end = min(first + max_images, rows)
                    yield FeatureTask(split, view, shard, group, first, end)
