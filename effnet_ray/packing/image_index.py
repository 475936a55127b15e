"""`images.parquet`: where each packed image is, and what was measured of it.

One row per image, in the order of the splits and of their rows: `path`, `split`, `row_group`
(number in the split) and `row` (in the group), `label`, `width` and `height` (px), `bytes`,
`brightness` (mean value, 0 to 255), and the source's columns that packing keeps, as text.
"""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute

from effnet_ray import storage
from effnet_ray.data.manifest import SPLITS
from effnet_ray.errors import DatasetError
from effnet_ray.packing.listing import Listing
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.shards import WrittenShard
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

NAME = "images.parquet"
MEASURED = ("path", "label", "width", "height", "bytes", "brightness")


PLACES = ("split", "row_group", "row")
PREFIX = "source."
"""Of a kept column whose name is that of one of ours."""


def write_image_index(
    written: Mapping[str, WrittenShard], listing: Listing, columns: SourceColumns, data: str
) -> None:
    """Write the file from the records of all shards, by path."""
    parts = []
    for split in SPLITS:
        groups = 0
        for path, result in written.items():
            if path.startswith(f"{split}/") and result.shard.rows:
                parts.append(_shard_rows(result, split, groups))
                groups += len(result.shard.row_groups)
    index = _with_kept(pa.concat_tables(parts), listing, columns)
    parquet.write_table(storage.join(data, NAME), index, compression="zstd")


def update_kept_columns(listing: Listing, columns: SourceColumns, data: str) -> None:
    """Bring the kept columns of a complete data set up to date with its source.

    Raises DatasetError for a data set without the file.
    """
    if columns.kept or (columns.group_column and storage.exists(storage.join(data, NAME))):
        before = read_image_index(data)
        index = _with_kept(before, listing, columns)
        if not index.equals(before):
            parquet.write_table(storage.join(data, NAME), index, compression="zstd")


def check_kept(listing: Listing, columns: SourceColumns, source: str) -> None:
    """Raise DatasetError for a column to keep in which no image has a value."""
    rows = [json.loads(row or "{}") for row in column_values(listing.images, "kept")]
    for name in columns.kept:
        if not any(row.get(name) for row in rows):
            raise DatasetError(
                f"{source} has no value of {name!r} for any image: check --keep-columns"
            )


def kept_columns(index: pa.Table) -> dict[str, str]:
    """The source's columns that packing kept → their names in the index."""
    names = [name for name in index.column_names if name not in (*MEASURED, *PLACES)]
    return {name.removeprefix(PREFIX): name for name in names}


def _with_kept(index: pa.Table, listing: Listing, columns: SourceColumns) -> pa.Table:
    """The index with the source's columns, which replace those of the same name."""
    paths, listed = column_values(index, "path"), column_values(listing.images, "path")
    for name, column in sorted(_kept_values(listing, columns).items()):
        values = dict(zip(listed, column, strict=True))
        array = pa.array([values.get(path) for path in paths], pa.string()).dictionary_encode()
        place = PREFIX + name if name in (*MEASURED, *PLACES) else name
        if place in index.column_names:
            index = index.drop_columns(place)
        index = index.append_column(place, array)
    return index


def _kept_values(listing: Listing, columns: SourceColumns) -> dict[str, list[str | None]]:
    """Column to keep → its values, in the order of the listing."""
    values = dict[str, list[str | None]]()
    if columns.kept:
        rows = [json.loads(row or "{}") for row in column_values(listing.images, "kept")]
        values = {name: [row.get(name) for row in rows] for name in columns.kept}
    if columns.group_column:
        values[columns.group_column] = column_values(listing.images, "group")
    return values


def _shard_rows(result: WrittenShard, split: str, first_group: int) -> pa.Table:
    """The rows of a shard, whose first row group has this number in the split."""
    packed = result.records.filter(pa.compute.equal(result.records["reason"], ""))
    sizes = result.shard.row_groups
    groups = np.repeat(np.arange(first_group, first_group + len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes])
    table = packed.select(MEASURED)
    table = table.append_column("split", pa.array([split] * len(groups)).dictionary_encode())
    table = table.append_column("row_group", pa.array(groups, pa.int32()))
    return table.append_column("row", pa.array(rows, pa.int32()))


def read_image_index(data: str) -> pa.Table:
    """The rows. Raises DatasetError for a data set without the file."""
    uri = storage.join(data, NAME)
    if not storage.exists(uri):
        raise DatasetError(
            f"{data} has no {NAME}: an earlier version packed it, or --in-place: pack its images "
            "again, into another --out"
        )
    return parquet.read_table(uri)
