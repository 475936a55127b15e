"""Uses existing Parquet shards where they are: writes only a manifest beside them.

The shards must have Hugging Face's image layout, numeric labels, and names that start with their
split (`train-00000-of-00004.parquet`, `validation-…`). They contain neither ids nor digests: ids
are positions, and the manifest stores a digest of every row group.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effnet_ray import storage
from effnet_ray.data import classes, hf_parquet, manifest as manifests
from effnet_ray.data.manifest import SPLITS, Manifest, Shard
from effnet_ray.errors import DatasetError
from effnet_ray.packing import archives
from effnet_ray.packing.listing import Map, split_of
from effnet_ray.packing.options import SourceColumns
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

MIN_DIVERSITY = 0.5
"""Rows count as sorted by class if the median row group has fewer distinct classes than this
fraction of what random rows would have. Random rows have about 1, sorted ones with many classes
almost 0; half is far from both. Chosen, not measured."""


@dataclass(frozen=True, slots=True)
class CheckJob:
    """One shard to check."""

    source: str
    path: str
    label_column: str


@dataclass(frozen=True, slots=True)
class CheckedShard:
    """A shard's manifest entry and labels."""

    shard: Shard
    labels: list[list[int]]
    """Per row group."""


def write_manifest(source: str, columns: SourceColumns, map_function: Map) -> Manifest:
    """Write a manifest beside the shards of `source` and return it.

    Raises DatasetError if they cannot be used for training as they are. Packing without
    `in_place` rewrites them.
    """
    if columns.task == MULTILABEL:
        raise DatasetError(
            "--in-place does not support --task multilabel: pack without --in-place"
        )
    paths = [path for path in storage.sizes(source) if path.lower().endswith(".parquet")]
    paths_of = _group_by_split(source, paths)
    names = (
        classes.read_class_names(columns.classes)
        if columns.classes
        else archives.read_class_names(source, paths, columns.label_column)
    )
    jobs = [CheckJob(source, path, columns.label_column) for path in paths]
    checked = dict(zip(paths, map_function(check_shard, jobs), strict=True))
    labels = [group for shard in checked.values() for group in shard.labels]
    _check_shuffled(source, labels)
    max_label = max(max(group, default=0) for group in labels)
    class_names = tuple(names or map(str, range(max_label + 1)))
    if max_label >= len(class_names):
        raise DatasetError(
            f"{source} has the label {max_label}, but only {len(class_names)} class names: "
            "correct the labels or the file of class names"
        )
    manifest = Manifest(
        classes=class_names,
        splits={
            split: tuple(checked[path].shard for path in shard_paths)
            for split, shard_paths in paths_of.items()
        },
        label_column=columns.label_column,
        made_from={"source": source, "in_place": 1},
    )
    manifests.write(manifest, source)
    return manifest


def _group_by_split(source: str, paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the shard paths of each split; no empty split."""
    paths_of: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in paths:
        split = split_of(path)
        if split is None:
            raise DatasetError(
                f"the name of {path} in {source} does not start with a split: rename it (train-…, "
                "validation-…, test-…), or pack without --in-place"
            )
        paths_of[split].append(path)
    if not paths_of["train"] or not paths_of["eval"]:
        raise DatasetError(
            f"{source} needs train-*.parquet and validation-*.parquet for --in-place: pack "
            "without --in-place, which creates an eval split"
        )
    return {split: shard_paths for split, shard_paths in paths_of.items() if shard_paths}


def check_shard(job: CheckJob) -> CheckedShard:
    """Read a shard once, one row group at a time."""
    uri = storage.join(job.source, job.path)
    footer = parquet.read_footer(uri)
    rows, labels, digests = [], [], []
    for number in range(footer.num_row_groups):
        size = footer.row_group(number).total_byte_size
        if size > hf_parquet.LARGEST_GROUP:
            raise DatasetError(
                f"{uri} has a row group of {size / 1e6:,.0f} MB, all of which would be fetched "
                "for each of its images: pack without --in-place"
            )
        table = hf_parquet.read_row_group(uri, number, job.label_column, footer)
        rows.append(table.num_rows)
        labels.append(column_values(table, "label"))
        digests.append(hf_parquet.digest(table))
    shard = Shard(
        path=job.path,
        row_groups=tuple(rows),
        bytes=storage.sizes(job.source)[job.path],
        sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
        digests=tuple(digests),
    )
    return CheckedShard(shard, labels)


def _check_shuffled(source: str, labels: Sequence[Sequence[int]]) -> None:
    """Raise DatasetError for rows sorted by class.

    Rows keep their order without packing, and a batch comes from few row groups.
    """
    all_labels = np.concatenate([np.asarray(group, np.int64) for group in labels])
    frequency = np.bincount(all_labels) / len(all_labels)
    diversity = []
    for group in labels:
        expected = np.sum(1 - (1 - frequency) ** len(group))  # distinct classes of random rows
        diversity.append(len(set(group)) / expected)
    if np.median(diversity) < MIN_DIVERSITY:
        raise DatasetError(
            f"{source} is sorted by class, so a batch would contain few classes: pack without "
            "--in-place, which shuffles"
        )
