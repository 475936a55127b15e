"""Parquet shards of somebody else's, trained from where they are: only a manifest is written.

They must be in Hugging Face's image layout, with numbered labels, and named by split
(`train-00000-of-00004.parquet`, `validation-…`). They know no ids and no digests: ids are
positions, and the manifest keeps a digest of every row group.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effnet_ray import storage
from effnet_ray.data import classes, hf_parquet, manifest as manifests
from effnet_ray.data.manifest import SPLITS, Manifest, Shard
from effnet_ray.errors import DatasetError
from effnet_ray.packing import archives, sources
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.sources import Map
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

MIXED = 0.5
"""With fewer of the classes in a row group than this share of what chance would give, the rows
are sorted by class."""


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """One shard to look at."""

    source: str
    path: str
    label: str


@dataclass(frozen=True, slots=True)
class CheckedShard:
    """What a shard holds."""

    shard: Shard
    labels: list[list[int]]
    """Of every row group."""


def index(source: str, columns: SourceColumns, each: Map) -> Manifest:
    """Write a manifest beside the shards of `source` and return it.

    Raises DatasetError where they cannot be trained from as they are; then `pack` rewrites them.
    """
    if columns.task == MULTILABEL:
        raise DatasetError("--task multilabel is not read in place: pack without --in-place")
    paths = [path for path in storage.sizes(source) if path.lower().endswith(".parquet")]
    by_split = _by_split(source, paths)
    known = (
        classes.read_class_names(columns.classes)
        if columns.classes
        else archives.class_names(source, paths, columns.label_column)
    )
    checks = [ShardCheck(source, path, columns.label_column) for path in paths]
    seen = dict(zip(paths, each(check_shard, checks), strict=True))
    labels = [group for found in seen.values() for group in found.labels]
    _check_mixed(source, labels)
    highest = max(max(group, default=0) for group in labels)
    names = tuple(known or map(str, range(highest + 1)))
    if highest >= len(names):
        raise DatasetError(f"{source} has the label {highest}, but only {len(names)} class names")
    manifest = Manifest(
        classes=names,
        splits={
            split: tuple(seen[path].shard for path in found) for split, found in by_split.items()
        },
        label_column=columns.label_column,
        made_from={"source": source, "in_place": 1},
    )
    manifests.write(manifest, source)
    return manifest


def _by_split(source: str, paths: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in paths:
        split = sources.split_of(path)
        if split is None:
            raise DatasetError(
                f"{path} of {source} is not named by its split: rename it (train-…, "
                "validation-…, test-…), or pack without --in-place"
            )
        found[split].append(path)
    if not found["train"] or not found["eval"]:
        raise DatasetError(
            f"{source} needs train-*.parquet and validation-*.parquet to be used in place: pack "
            "without --in-place, which makes the split"
        )
    return {split: these for split, these in found.items() if these}


def check_shard(job: ShardCheck) -> CheckedShard:
    """Read a shard once, a row group at a time."""
    uri = storage.join(job.source, job.path)
    footer = parquet.read_footer(uri)
    groups, labels, digests = [], [], []
    for number in range(footer.num_row_groups):
        size = footer.row_group(number).total_byte_size
        if size > hf_parquet.LARGEST_GROUP:
            raise DatasetError(
                f"{uri} has a row group of {size / 1e6:,.0f} MB, which every read of one of its "
                "images would fetch: pack without --in-place"
            )
        table = hf_parquet.read_row_group(uri, number, job.label, footer)
        groups.append(table.num_rows)
        labels.append(column_values(table, "label"))
        digests.append(hf_parquet.digest(table))
    sha = hashlib.sha256("".join(digests).encode()).hexdigest()
    shard = Shard(
        path=job.path,
        row_groups=tuple(groups),
        bytes=storage.sizes(job.source)[job.path],
        sha256=sha,
        digests=tuple(digests),
    )
    return CheckedShard(shard, labels)


def _check_mixed(source: str, labels: Sequence[Sequence[int]]) -> None:
    """Packing shuffles; here the rows stay in their order, and a batch comes from few groups."""
    every = np.concatenate([np.asarray(group, np.int64) for group in labels])
    share = np.bincount(every) / len(every)
    shares = []
    for group in labels:
        expected = np.sum(1 - (1 - share) ** len(group))  # distinct classes, were they drawn
        shares.append(len(set(group)) / expected)
    if np.median(shares) < MIXED:
        raise DatasetError(
            f"{source} is sorted by class, and batches of one class do not train: pack without "
            "--in-place, which shuffles"
        )
