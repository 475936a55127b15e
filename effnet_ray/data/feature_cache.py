"""The cache of a frozen network's outputs: where they are stored, how they are read and written.

A folder holds the features, or a teacher's logits, of one view of one split's images. Its name is
a hash of everything that they depend on, so runs that need the same share them. A file has the
rows of one of the split's shards.

    RUNS/features/<key>/00000.parquet …   id, label, feature [F], bad
    RUNS/features/<key>/features.json     written last
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import safe_json, storage
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.parquet_reads import (
    as_dataset_error,
    cached_footer,
    forget_footers,
    read_row_groups,
    read_twice,
)
from effnet_ray.recipe import Recipe
from effnet_ray.storage import parquet
from effnet_ray.variants import InputSpec

FOLDER = "features"
RECORD = "features.json"
VERSION = 1
"""Version of the file format and of the computation. It is part of the key: raise it, and features
are computed again."""
BAD_COUNT = b"bad"
"""Key in a file's Parquet metadata: how many of its images could not be read."""
ROW_GROUP_ROWS = 64
"""Images per row group, as in packed shards, whatever the shard's are: 160 kB of a B0's features,
320 kB of a B7's. Chosen, not measured."""
CACHED_GROUPS = 256
"""Row groups that a process keeps after reading them: 42 MB of a B0's features."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """The features of some images."""

    feature: npt.NDArray[np.floating[Any]]
    """[n, F]: float16 for training, float32 for evaluation, so that its metrics do not change.
    Of a teacher its logits [n, K]: NaN for images that could not be read."""
    label: npt.NDArray[Any]
    """[n] int64, or in a multilabel data set [n, K] uint8."""
    id: npt.NDArray[np.int64]
    bad: list[str]
    """Per image: why it could not be read, as JSON of `BadImage`; else empty."""


def folder(
    root: str,
    *,
    backbone: str,
    manifest: Manifest,
    recipe: Recipe,
    spec: InputSpec,
    split: str,
    view: int | None,
) -> str:
    """The folder below `root` for the features of a split's view (None: the eval view).

    `backbone` is the SHA-256 of the pretrained file. The key also holds the data set (cut by
    `limit` or not), the input spec, the precision and, for a random view, what it is drawn from.
    """
    content = [
        VERSION,
        recipe.variant,
        backbone,
        manifest.fingerprint,
        spec.as_json(),
        recipe.precision,
        split,
        view,
        *(() if view is None else recipe.view_settings),
    ]
    return _keyed(root, content)


def teacher_folder(
    root: str,
    *,
    weights: str,
    variant: str,
    spec: InputSpec,
    outputs: Sequence[int],
    manifest: Manifest,
    precision: str | None,
) -> str:
    """The folder below `root` for a teacher's logits of the train split's eval views.

    `weights` is the SHA-256 of its weights, `spec` its input spec, `outputs` its output for each
    class of the data set.
    """
    teacher = [VERSION, "teacher", variant, weights, spec.as_json(), list(outputs)]
    return _keyed(root, [*teacher, manifest.fingerprint, precision])


def _keyed(root: str, content: Sequence[Any]) -> str:
    """The folder below `root` whose name is a hash of `content`."""
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return storage.join(root, key)


def file_name(shard: int) -> str:
    """Name of the file for a split's shard, by its number in the manifest."""
    return f"{shard:05d}.parquet"


def write(uri: str, parts: Iterable[FeatureRows]) -> None:
    """Write a shard's features, in the order of its rows."""
    table = pa.concat_tables([_table(part) for part in parts]).combine_chunks()
    bad = sum(map(bool, table["bad"].to_pylist()))
    schema = table.schema.with_metadata({BAD_COUNT: str(bad)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, schema, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        writer.write_table(table.cast(schema), row_group_size=ROW_GROUP_ROWS)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def _table(rows: FeatureRows) -> pa.Table:
    label = _to_column(rows.label) if rows.label.ndim == 2 else rows.label
    feature = _to_column(rows.feature)
    return pa.table({"id": rows.id, "label": label, "feature": feature, "bad": rows.bad})


def _to_column(array: npt.NDArray[Any]) -> pa.Array:
    """An array [n, W] as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _from_column(column: pa.Array) -> npt.NDArray[Any]:
    """A column as an array: [n, W] for fixed-size lists, else [n]."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()  # type: ignore[no-any-return]  # Arrow has no types
    flat: npt.NDArray[Any] = column.flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size)


@lru_cache(maxsize=CACHED_GROUPS)
def read(uri: str, group: int) -> FeatureRows:
    """A row group of a file. It is read again if another run has rewritten the file meanwhile.

    Raises DatasetError if it is damaged.
    """

    def reread() -> FeatureRows:
        forget_footers()
        return _read(uri, group)

    remedy = f"delete {uri.rpartition('/')[0]}, and run the same command again to recompute them"
    with as_dataset_error(f"features in {uri}", remedy):
        return read_twice(lambda: _read(uri, group), reread)


def _read(uri: str, group: int) -> FeatureRows:
    table = read_row_groups(uri, [group], cached_footer(uri), verify=True).combine_chunks()
    return FeatureRows(
        feature=_from_column(table["feature"].chunk(0)),
        label=_from_column(table["label"].chunk(0)),
        id=table["id"].to_numpy(),
        bad=table["bad"].to_pylist(),
    )


def bad_images(uri: str) -> int:
    """How many images of a file could not be read when its features were computed.

    Raises StorageError if the file does not say so.
    """
    with parquet.errors(uri):
        return int(parquet.read_schema(uri).metadata[BAD_COUNT])


def write_record(uri: str, names: Iterable[str]) -> None:
    """Mark the folder as complete: write each file's size and number of bad images."""
    sizes = storage.sizes(uri)
    files = {
        name: {"bytes": sizes[name], "bad": bad_images(storage.join(uri, name))} for name in names
    }
    content = json.dumps({"version": VERSION, "files": files}, indent=1)
    storage.write_bytes(storage.join(uri, RECORD), content.encode())


def read_record(uri: str) -> dict[str, dict[str, int]] | None:
    """The files of a complete folder; None if it is not complete."""
    record_uri = storage.join(uri, RECORD)
    if not storage.exists(record_uri):
        return None
    try:
        files: dict[str, dict[str, int]] = safe_json.parse(storage.read_bytes(record_uri))["files"]
        sizes = storage.sizes(uri)
        complete = all(sizes.get(name) == file["bytes"] for name, file in files.items())
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return files if complete else None
