"""`images.parquet`: where each packed image is, and what was measured of it.

One row per image, in the order of the splits and of their rows: `path`, `split`, `row_group`
(number in the split) and `row` (in the group), `label`, `width` and `height` (px), `bytes`, and
`brightness` (mean value, 0 to 255).
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute

from effnet_ray import storage
from effnet_ray.data.manifest import SPLITS
from effnet_ray.errors import DatasetError
from effnet_ray.packing.shards import WrittenShard
from effnet_ray.storage import parquet

NAME = "images.parquet"
MEASURED = ("path", "label", "width", "height", "bytes", "brightness")


def write_image_index(written: Mapping[str, WrittenShard], data: str) -> None:
    """Write the file from the records of all shards, by path."""
    parts = []
    for split in SPLITS:
        groups = 0
        for path, result in written.items():
            if path.startswith(f"{split}/") and result.shard.rows:
                parts.append(_shard_rows(result, split, groups))
                groups += len(result.shard.row_groups)
    parquet.write_table(storage.join(data, NAME), pa.concat_tables(parts), compression="zstd")


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
            "again"
        )
    return parquet.read_table(uri)
