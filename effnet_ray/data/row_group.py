"""Reads a row group of a shard and verifies that its images are those that were packed.

SHA-256 detects flipped bits in images, Parquet's page checksums those in the other columns.
Damaged data is read a second time.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_ray import storage
from effnet_ray.data import hf_parquet
from effnet_ray.data.classes import LABEL, LABELS, Label
from effnet_ray.data.manifest import SPLITS, Manifest
from effnet_ray.data.parquet_reads import (
    as_dataset_error,
    cached_footer,
    forget_footers,
    read_row_groups,
    read_twice,
)
from effnet_ray.errors import DatasetError, ImageError, StorageError
from effnet_ray.recipe import MULTILABEL

COLUMNS = {
    "id": pa.int64(),
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "label": LABEL,
    "digest": pa.string(),
}
"""Columns of a shard as `pack` writes them. In a multilabel data set `label` is a list."""

REMEDY = "restore the shard from a copy, or pack again"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of a shard."""

    id: int
    label: Label
    path: str
    """In the source that was packed."""
    digest: str
    """SHA-256 of the bytes that were packed."""
    data: bytes | ImageError
    """The encoded image, or an error if its bytes are not those that were packed."""


class RowGroup:
    """A row group of a split, verified against the manifest and its own digests."""

    def __init__(
        self, manifest: Manifest, data: str, split: str, group: int, *, limited: bool
    ) -> None:
        """Read row group number `group` of a split; `limited`: `limit` has cut the manifest.

        Raises DatasetError if it is not what was packed, StorageError if storage fails.
        """
        index = manifest.index(split)
        shard = int(index.shards(np.asarray([group]))[0][0])
        self._shard, self._rows = manifest.splits[split][shard], int(index.sizes[group])
        self._index = group - int(index.first_groups[shard])
        self._label_column, self._limited = manifest.label_column, limited
        self._types = COLUMNS | {"label": LABELS if manifest.task == MULTILABEL else LABEL}
        # Ids in shards without an id column: the place in the split, offset by the split.
        self._first_id = (SPLITS.index(split) << 40) + int(index.ends[group]) - self._rows
        self._uri = storage.join(data, self._shard.path)
        self._what = f"row group {self._index} of shard {self._uri}"
        self._reread_done = False
        with as_dataset_error(self._what, REMEDY):
            self._table = read_twice(lambda: self._read(verify=True), self._reread)

    def record(self, row: int) -> ImageRecord:
        """One row. If its image is damaged, the row group is read a second time."""
        record = self._record(row)
        if isinstance(record.data, ImageError) and not self._reread_done:
            with as_dataset_error(self._what, REMEDY):
                self._table = self._reread()
            record = self._record(row)
        return record

    def _record(self, row: int) -> ImageRecord:
        values = {name: self._table[name][row].as_py() for name in self._types}
        data: bytes | ImageError = values["image"]["bytes"]
        if hashlib.sha256(values["image"]["bytes"]).hexdigest() != values["digest"]:
            data = ImageError("its bytes do not match the SHA-256 in the shard")
        return ImageRecord(
            values["id"], values["label"], values["image"]["path"], values["digest"], data
        )

    def _reread(self) -> pa.Table:
        """The row group, read from storage again; this time images may be damaged."""
        self._reread_done = True
        forget_footers()
        try:
            return self._read(verify=True)
        except (OSError, StorageError):
            return self._read_with_damaged_images()

    def _read_with_damaged_images(self) -> pa.Table:
        """The row group if everything but the images' bytes passes its checksums.

        The images' own digests then tell which of them are damaged.
        """
        verified = self._read(verify=True, columns=["id", "image.path", "label", "digest"])
        table = self._read(verify=False)
        same = all(table[name].equals(verified[name]) for name in ("id", "label", "digest"))
        paths = [pc.struct_field(part["image"], "path") for part in (table, verified)]
        if not same or not paths[0].equals(paths[1]):
            raise OSError("two reads returned different bytes")
        return table

    def _read(self, *, verify: bool, columns: list[str] | None = None) -> pa.Table:
        footer = cached_footer(self._uri)
        self._check_count("row groups", footer.num_row_groups, len(self._shard.row_groups))
        if self._shard.digests:
            return self._read_in_place()
        table = read_row_groups(self._uri, [self._index], footer, columns=columns, verify=verify)
        if columns is None:
            self._check_schema(table.schema)
        self._check_count(f"rows in row group {self._index}", table.num_rows, self._rows)
        if any(column.null_count for column in table.flatten().columns):
            raise OSError("a value is missing")
        return table

    def _read_in_place(self) -> pa.Table:
        """The row group of a shard that `pack --in-place` indexed.

        If it is not what was indexed, all its digests are empty on the second read.
        """
        footer = cached_footer(self._uri)
        table = hf_parquet.read_row_group(self._uri, self._index, self._label_column, footer)
        self._check_count(f"rows in row group {self._index}", table.num_rows, self._rows)
        if hf_parquet.digest(table) != self._shard.digests[self._index]:
            if not self._reread_done:
                raise OSError("its digest does not match the manifest")
            table = table.set_column(2, "digest", pa.array([""] * len(table)))
        ids = pa.array(range(self._first_id, self._first_id + len(table)), pa.int64())
        return table.append_column("id", ids)

    def _check_schema(self, schema: pa.Schema) -> None:
        if schema.names != list(self._types):
            raise OSError(
                f"its columns are {', '.join(schema.names)}, expected {', '.join(self._types)}"
            )
        if {field.name: field.type for field in schema} != self._types:
            raise OSError("its columns have unexpected types")

    def _check_count(self, what: str, actual: int, expected: int) -> None:
        """Check a count against the manifest's; it may be larger if `limit` cut the manifest."""
        if actual < expected or (actual > expected and not self._limited):
            raise DatasetError(
                f"shard {self._uri} has {actual:,} {what}, the manifest lists {expected:,}: "
                f"{REMEDY}"
            )
