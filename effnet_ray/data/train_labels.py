"""The labels of the train split: in a file beside the manifest, or in the shards' label column.

Packing writes the file, except with `--in-place`. Reading the column costs a request per row
group, of which a million images have 16,000.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.class_balance import Labels
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.data.parquet_reads import as_dataset_error, read_row_groups, read_twice
from effnet_ray.errors import DatasetError, NotFoundError
from effnet_ray.storage import parquet

FILE = "labels.parquet"
READERS = 16
"""Shards read at a time: a row group's labels are few bytes, so a read is mostly waiting.
Chosen, not measured."""


def write_train_labels(labels: npt.ArrayLike, classes: int, data: str) -> str:
    """Write the train split's labels, in file order; returns the SHA-256 for the manifest."""
    sink = io.BytesIO()
    column = pa.array(Labels.of(labels, classes).values)
    pq.write_table(pa.table({"label": column}), sink, compression="zstd")
    storage.write_bytes(storage.join(data, FILE), sink.getvalue())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def read_train_labels(manifest: Manifest, data: str) -> Labels:
    """The labels of the train split of the data set `data`; `limit` may have cut `manifest`.

    Those in the shards, if the file is missing or is not the manifest's. Raises DatasetError if
    they are not the manifest's, StorageError if storage fails.
    """
    folder, classes = manifests.folder(data), len(manifest.classes)
    labels = _read_file(manifest, folder)
    if labels is None:
        labels = _read_shards(manifest, folder)
    return Labels.of(labels, classes)


def _read_file(manifest: Manifest, folder: str) -> npt.NDArray[np.int64] | None:
    """The labels in the file that the manifest lists, if they are there."""
    if not manifest.labels_sha256:
        return None
    try:
        raw = storage.read_bytes(storage.join(folder, FILE))
    except NotFoundError:
        return None
    if hashlib.sha256(raw).hexdigest() != manifest.labels_sha256:
        return None
    with as_dataset_error(f"{FILE} of {folder}", "restore it from a copy, or pack again"):
        labels: npt.NDArray[np.int64] = parquet.parse_table(raw, FILE)["label"].to_numpy()
    return labels[: manifest.images["train"]]


def _read_shards(manifest: Manifest, folder: str) -> npt.NDArray[np.int64]:
    """The labels in the shards."""
    classes = len(manifest.classes)

    def read_shard(shard: Shard) -> npt.NDArray[np.int64]:
        return _read_shard(storage.join(folder, shard.path), manifest.label_column, shard, classes)

    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(read_shard, manifest.splits["train"]))
    return np.concatenate(parts)


def _read_shard(uri: str, name: str, shard: Shard, classes: int) -> npt.NDArray[np.int64]:
    """The labels of a shard's rows, checked."""

    def read() -> pa.ChunkedArray:
        return _read_column(uri, name, shard)

    remedy = "restore the shard from a copy, or pack again"
    with as_dataset_error(f"the label column of shard {uri}", remedy):
        column = read_twice(read, read)
    if not pa.types.is_integer(column.type) or column.null_count or len(column) < shard.rows:
        raise DatasetError(
            f"{uri} has {len(column):,} labels of type {column.type} in {name!r}, "
            f"{column.null_count:,} of them missing, but the manifest lists {shard.rows:,} "
            f"integers: {remedy}"
        )
    labels: npt.NDArray[np.int64] = column.to_numpy()[: shard.rows].astype(np.int64)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DatasetError(
            f"{uri} has the label {wrong[0]}, but the manifest lists classes 0 to {classes - 1}: "
            "pack again"
        )
    return labels


def _read_column(uri: str, name: str, shard: Shard) -> pa.ChunkedArray:
    """The label column of the shard's row groups that are in the manifest."""
    footer = parquet.read_footer(uri)
    if name not in footer.schema.to_arrow_schema().names:
        return pa.chunked_array([], pa.null())
    groups = range(min(footer.num_row_groups, len(shard.row_groups)))
    # Shards that were not written by `pack` may have no checksums to verify.
    verify = not shard.digests
    table = read_row_groups(uri, groups, footer, columns=[name], verify=verify, size=shard.rows)
    return table[name]
