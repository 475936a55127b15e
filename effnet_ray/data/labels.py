"""The labels of a train split, read from its shards: that column alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.class_balance import Labels
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.errors import DatasetError, OutageError

READERS = 16
"""Shards read at a time: a row group's labels are few bytes, so a read is mostly waiting."""


def read(manifest: Manifest, data: str) -> Labels:
    """The train split's labels; `manifest` may have been cut by `limit`.

    Raises DatasetError where they are not the manifest's, StorageError where storage fails.
    """
    folder, classes = manifests.folder(data), len(manifest.classes)

    def of_shard(shard: Shard) -> npt.NDArray[np.int64]:
        return _checked(storage.join(folder, shard.path), manifest.label_column, shard, classes)

    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(of_shard, manifest.splits["train"]))
    return Labels.of(np.concatenate(parts), classes)


def _checked(uri: str, name: str, shard: Shard, classes: int) -> npt.NDArray[np.int64]:
    """The labels of a shard's rows. Raises DatasetError."""
    column = _read_twice(uri, name, shard)
    if not pa.types.is_integer(column.type) or column.null_count or len(column) < shard.rows:
        raise DatasetError(
            f"{uri} has {len(column):,} labels of type {column.type} in {name!r}, "
            f"{column.null_count:,} of them missing, the manifest says {shard.rows:,} numbers: "
            "restore the shard or pack again"
        )
    found: npt.NDArray[np.int64] = column.to_numpy()[: shard.rows].astype(np.int64)
    wrong = found[(found < 0) | (found >= classes)]
    if len(wrong):
        raise DatasetError(
            f"{uri} has the label {wrong[0]}, the manifest has the classes 0 to {classes - 1}: "
            "pack again"
        )
    return found


def _read_twice(uri: str, name: str, shard: Shard) -> pa.ChunkedArray:
    """What cannot be read is read once more, which heals what was damaged on its way."""
    for again in (True, False):
        try:
            return _column(uri, name, shard)
        except OutageError:
            raise
        except Exception as error:  # whatever a damaged file makes Arrow raise
            if not again:
                raise DatasetError(
                    f"the labels of shard {uri} cannot be read, twice "
                    f"({' '.join(str(error).split())}): restore the shard or pack again"
                ) from error
    raise AssertionError  # the second try returns or raises


def _column(uri: str, name: str, shard: Shard) -> pa.ChunkedArray:
    """The label column of the row groups that the manifest has of a shard."""
    filesystem, path = storage.arrow_filesystem(uri)

    def fetch() -> pa.ChunkedArray:
        ours = not shard.digests  # others' shards may have no checksums to verify
        with pq.ParquetFile(
            path, filesystem=filesystem, pre_buffer=True, page_checksum_verification=ours
        ) as file:
            groups = range(min(file.num_row_groups, len(shard.row_groups)))
            if name not in file.schema_arrow.names:
                return pa.chunked_array([], pa.null())
            return file.read_row_groups(groups, columns=[name])[name]

    return storage.read_with_retries(uri, fetch, shard.rows)
