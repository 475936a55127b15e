"""Features of a frozen backbone: where they are kept, how they are written and read back.

A folder holds those of one view of one split's images; its name is a key of all that they follow
from, so whoever needs the same finds them. A file has the rows of one of the split's shards.

    RUNS/features/<key>/00000.parquet …   id, label, feature [F], bad
    RUNS/features/<key>/features.json     written last
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import DatasetError, OutageError
from effnet_ray.recipe import Recipe
from effnet_ray.storage import parquet
from effnet_ray.variants import InputSpec

FOLDER = "features"
RECORD = "features.json"
VERSION = 1
BAD = b"bad"
"""What a file's own metadata call the number of its images that could not be read."""
ROWS = 64
"""Of a row group here, whatever the shard's are: 160 kB of a B0's features, 320 of a B7's."""
GROUPS_KEPT = 256
"""Row groups that a process keeps when it has read them: 42 MB of a B0's features."""


@dataclass(frozen=True, slots=True)
class Group:
    """The features of some images."""

    feature: npt.NDArray[np.floating[Any]]
    """[n, F]: float16; float32 of eval images, so that their figures are the network's own."""
    label: npt.NDArray[Any]
    """[n] int64, or [n, K] uint8 where images may have several."""
    id: npt.NDArray[np.int64]
    bad: list[str]
    """Of each image why it could not be read, as JSON of `Bad`; else empty."""


def folder(
    root: str,
    backbone: str,
    manifest: Manifest,
    recipe: Recipe,
    spec: InputSpec,
    split: str,
    view: int | None,
) -> str:
    """Where the features of a view (None: the plain one) lie below `root`.

    `backbone` is the SHA-256 of the pretrained file. The key also says the data (limited or not),
    the input spec, the precision and, for a view that is drawn, all that draws it.
    """
    drawn = (recipe.seed, recipe.aa, recipe.crop_scale, recipe.crop_ratio, recipe.flip)
    content = [
        VERSION, recipe.variant, backbone, manifest.fingerprint, asdict(spec), recipe.precision,
        split, view, *(drawn if view is not None else ()),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return storage.join(root, key)


def file_name(shard: int) -> str:
    """Of the features of a split's shard, by its number in the manifest."""
    return f"{shard:05d}.parquet"


def row_group_places(manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    """[G, 2]: of each row group of the split its shard's number, and its first row there."""
    found = [
        (number, first)
        for number, shard in enumerate(manifest.splits.get(split, ()))
        for first in np.cumsum([0, *shard.row_groups[:-1]]).tolist()
    ]
    return np.asarray(found, np.int64)


def write(uri: str, parts: Iterable[Group]) -> None:
    """Write a shard's features, in the order of its rows."""
    table = pa.concat_tables([_table(part) for part in parts]).combine_chunks()
    bad = sum(map(bool, table["bad"].to_pylist()))
    schema = table.schema.with_metadata({BAD: str(bad)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, schema, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        writer.write_table(table.cast(schema), row_group_size=ROWS)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def _table(group: Group) -> pa.Table:
    label = _wide(group.label) if group.label.ndim == 2 else group.label
    feature = _wide(group.feature)
    return pa.table({"id": group.id, "label": label, "feature": feature, "bad": group.bad})


def _wide(rows: npt.NDArray[Any]) -> pa.Array:
    """A column of rows [n, W]."""
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def _rows(column: pa.Array) -> npt.NDArray[Any]:
    """[n] or [n, W], as it was written."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()  # type: ignore[no-any-return]  # Arrow has no types
    flat: npt.NDArray[Any] = column.flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size)


@lru_cache(maxsize=GROUPS_KEPT)
def read(uri: str, group: int) -> Group:
    """A row group of a file; read twice where it has been written anew meanwhile.

    Raises DatasetError where it is not as it was written.
    """
    try:
        return _read(uri, group)
    except OutageError:
        raise
    except Exception:  # whatever a damaged file makes Arrow raise
        _footer.cache_clear()
    try:
        return _read(uri, group)
    except OutageError:
        raise
    except Exception as error:
        where = uri.rpartition("/")[0]
        raise DatasetError(
            f"features in {uri} cannot be read ({' '.join(str(error).split())}): delete {where}, "
            "and run the same command again to compute them anew"
        ) from None


def _read(uri: str, group: int) -> Group:
    filesystem, path = storage.arrow_filesystem(uri)

    def read_group() -> pa.Table:
        with pq.ParquetFile(
            path,
            filesystem=filesystem,
            metadata=_footer(uri),
            pre_buffer=True,
            page_checksum_verification=True,
        ) as file:
            return file.read_row_group(group)

    table = storage.read_with_retries(uri, read_group).combine_chunks()
    return Group(
        feature=_rows(table["feature"].chunk(0)),
        label=_rows(table["label"].chunk(0)),
        id=table["id"].to_numpy(),
        bad=table["bad"].to_pylist(),
    )


@lru_cache(maxsize=64)
def _footer(uri: str) -> pq.FileMetaData:
    return parquet.read_footer(uri)


def bad_images(uri: str) -> int:
    """Images of a file that could not be read when its features were computed."""
    footer = parquet.read_footer(uri)
    return int(footer.schema.to_arrow_schema().metadata[BAD])


def write_record(uri: str, names: Iterable[str]) -> None:
    """Say that the folder is complete: its files, each with its bytes, and how many are bad."""
    found = storage.sizes(uri)
    files = {name: {"bytes": found[name], "bad": bad_images(storage.join(uri, name))}
             for name in names}  # fmt: skip
    content = json.dumps({"version": VERSION, "files": files}, indent=1)
    storage.write_bytes(storage.join(uri, RECORD), content.encode())


def read_record(uri: str) -> dict[str, dict[str, int]] | None:
    """The files of a complete folder; None where it is not complete."""
    where = storage.join(uri, RECORD)
    if not storage.exists(where):
        return None
    try:
        files: dict[str, dict[str, int]] = json.loads(storage.read_bytes(where))["files"]
        found = storage.sizes(uri)
        whole = all(found.get(name) == file["bytes"] for name, file in files.items())
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return files if whole else None
