"""Parquet shards of somebody else's, trained from where they are: only a manifest is written.

They must be in Hugging Face's image layout, with numbered labels, and named by split
(`train-00000-of-00004.parquet`, `validation-…`). They know no ids and no digests: ids are
positions, and the manifest keeps a digest of every row group.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import archives, classes, manifest as manifests, sources
from effnet_ray.data.archives import values
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.data.sources import SPLITS, Columns, Each
from effnet_ray.errors import DatasetError
from effnet_ray.tasks import MULTILABEL

LARGEST_GROUP = 256 * 1024**2
"""A row group is read as a whole, whatever part of it is wanted."""
MIXED = 0.5
"""With fewer of the classes in a row group than this share of what chance would give, the rows
are sorted by class."""


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to look at."""

    source: str
    path: str
    label: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a shard holds."""

    shard: Shard
    labels: list[list[int]]
    """Of every row group."""


def index(source: str, columns: Columns, each: Each) -> Manifest:
    """Write a manifest beside the shards of `source` and return it.

    Raises DatasetError where they cannot be trained from as they are; then `pack` rewrites them.
    """
    if columns.task == MULTILABEL:
        raise DatasetError("--task multilabel is not read in place: pack without --in-place")
    paths = [path for path in storage.sizes(source) if path.lower().endswith(".parquet")]
    by_split = _by_split(source, paths)
    known = (
        classes.names_in(columns.classes)
        if columns.classes
        else archives.class_names(source, paths, columns.label_column)
    )
    seen = dict(zip(paths, each(look, [Job(source, path, columns.label_column) for path in paths]),
                    strict=True))  # fmt: skip
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


def look(job: Job) -> Seen:
    """Read a shard once, a row group at a time."""
    uri = storage.join(job.source, job.path)
    footer = storage.attempt(uri, lambda: pq.read_metadata(*_at(uri)))
    groups, labels, digests = [], [], []
    for number in range(footer.num_row_groups):
        size = footer.row_group(number).total_byte_size
        if size > LARGEST_GROUP:
            raise DatasetError(
                f"{uri} has a row group of {size / 1e6:,.0f} MB, which every read of one of its "
                "images would fetch: pack without --in-place"
            )
        table = read(uri, number, job.label, footer)
        groups.append(table.num_rows)
        labels.append(values(table, "label"))
        digests.append(digest_of(table))
    sha = hashlib.sha256("".join(digests).encode()).hexdigest()
    shard = Shard(
        path=job.path,
        row_groups=tuple(groups),
        bytes=storage.sizes(job.source)[job.path],
        sha256=sha,
        digests=tuple(digests),
    )
    return Seen(shard, labels)


def _at(uri: str) -> tuple[str, Any]:
    filesystem, path = storage.arrow_filesystem(uri)
    return path, filesystem


def read(uri: str, group: int, label: str, footer: pq.FileMetaData) -> pa.Table:
    """A row group as `image`, `label` and each image's `digest`.

    Raises DatasetError where columns or their types are not the layout's.
    """
    path, filesystem = _at(uri)

    def fetch() -> pa.Table:
        with pq.ParquetFile(path, filesystem=filesystem, metadata=footer, pre_buffer=True) as file:
            names = file.schema_arrow.names
            return file.read_row_group(group, [n for n in ("image", label) if n in names])

    table = storage.attempt(uri, fetch, footer.row_group(group).total_byte_size)
    fits = label in table.schema.names and archives.holds_images(table.schema)
    if not fits or not pa.types.is_integer(table.schema.field(label).type):
        raise DatasetError(
            f"{uri} is not `image` {{bytes, path}} with numbers in {label!r}: name the column "
            "with --label-column, or pack without --in-place"
        )
    images = values(table, "image")
    if any(not image or image["bytes"] is None for image in images):
        raise DatasetError(f"{uri} has rows without an image's bytes: pack without --in-place")
    return pa.table(
        {
            "image": [{"bytes": i["bytes"], "path": i.get("path") or ""} for i in images],
            "label": pa.array(values(table, label), pa.int64()),
            "digest": [hashlib.sha256(image["bytes"]).hexdigest() for image in images],
        }
    )


def digest_of(table: pa.Table) -> str:
    """SHA-256 of a row group's digests and labels."""
    told = zip(values(table, "digest"), values(table, "label"), strict=True)
    return hashlib.sha256(repr(list(told)).encode()).hexdigest()


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
