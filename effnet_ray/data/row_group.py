"""Reading a row group, and holding what comes against what was packed.

SHA-256 finds flipped bits in images, Parquet's page checksums those in everything else. What is
damaged is read once more, which heals what went wrong on its way.
"""

import hashlib
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import hf_parquet
from effnet_ray.data.classes import LABEL, LABELS
from effnet_ray.data.manifest import SPLITS, Manifest
from effnet_ray.errors import DatasetError, OutageError, StorageError
from effnet_ray.storage import parquet
from effnet_ray.tasks import MULTILABEL


class RowGroup:
    """A row group of a split. Read once more where what came is not what was packed."""

    types: dict[str, pa.DataType]
    """Its columns."""

    def __init__(
        self, manifest: Manifest, data: str, split: str, group: int, *, limited: bool
    ) -> None:
        """Read row group number `group` of a split; `limited`: the manifest has been cut.

        Raises DatasetError where it is not what was packed, StorageError where storage fails.
        """
        every = manifest.row_groups(split)
        self._shard, self._index, self._rows = every[group]
        self._label, self._limited = manifest.label_column, limited
        self.types = TYPES | {"label": LABELS if manifest.task == MULTILABEL else LABEL}
        # Ids of shards that have none: the place in the split, the splits apart.
        self._first = (SPLITS.index(split) << 40) + sum(rows for _, _, rows in every[:group])
        self._uri = storage.join(data, self._shard.path)
        self._read_again = False
        try:
            self._table = self._read(verify=True)
        except OutageError:
            raise
        except Exception:  # whatever a damaged file makes Arrow raise
            self._again()

    def record(self, row: int) -> dict[str, Any]:
        """One row, and `as_packed`: whether its bytes are, by the second read if not the first."""
        record = self._row(row)
        if not record["as_packed"] and not self._read_again:
            self._again()
            record = self._row(row)
        return record

    def _row(self, row: int) -> dict[str, Any]:
        record = {name: self._table[name][row].as_py() for name in self.types}
        digest = hashlib.sha256(record["image"]["bytes"]).hexdigest()
        return {**record, "as_packed": digest == record["digest"]}

    def _again(self) -> None:
        """Read from storage a second time; this time damage to images alone is let through."""
        self._read_again = True
        _footer.cache_clear()
        try:
            try:
                self._table = self._read(verify=True)
            except (OSError, StorageError):
                self._table = self._with_damaged_images()
        except (DatasetError, OutageError):
            raise
        except Exception as error:
            raise DatasetError(
                f"row group {self._index} of shard {self._uri} cannot be read, twice "
                f"({_one_line(error)}): restore the shard or pack again"
            ) from error

    def _with_damaged_images(self) -> pa.Table:
        """The row group where all but the images' bytes is as its checksums say.

        The images' own digests tell then which of them are damaged.
        """
        checked = self._read(verify=True, columns=["id", "image.path", "label", "digest"])
        table = self._read(verify=False)
        same = all(table[name].equals(checked[name]) for name in ("id", "label", "digest"))
        paths = [pc.struct_field(found["image"], "path") for found in (table, checked)]
        if not same or not paths[0].equals(paths[1]):
            raise OSError("two reads differ")
        return table

    def _read_foreign(self) -> pa.Table:
        """Of a shard that is not ours; with empty digests where it is not what was indexed."""
        table = hf_parquet.read_row_group(self._uri, self._index, self._label, _footer(self._uri))
        self._reconcile(f"rows in row group {self._index}", table.num_rows, self._rows)
        if hf_parquet.digest(table) != self._shard.digests[self._index]:
            if not self._read_again:
                raise OSError("its digest is not the manifest's")
            table = table.set_column(2, "digest", pa.array([""] * len(table)))
        ids = pa.array(range(self._first, self._first + len(table)), pa.int64())
        return table.append_column("id", ids)

    def _read(self, *, verify: bool, columns: list[str] | None = None) -> pa.Table:
        footer = _footer(self._uri)
        self._reconcile("row groups", footer.num_row_groups, len(self._shard.row_groups))
        if self._shard.digests:
            return self._read_foreign()
        filesystem, path = storage.arrow_filesystem(self._uri)

        def read() -> pa.Table:
            with pq.ParquetFile(
                path,
                filesystem=filesystem,
                metadata=footer,
                pre_buffer=True,
                page_checksum_verification=verify,
            ) as file:
                return file.read_row_group(self._index, columns=columns)

        size = footer.row_group(self._index).total_byte_size
        table = storage.read_with_retries(self._uri, read, size)
        if columns is None and table.schema.names != list(self.types):
            raise OSError(f"its columns are {', '.join(table.schema.names)}")
        found = {field.name: field.type for field in table.schema}
        if columns is None and found != self.types:
            raise OSError("its columns have other types")
        self._reconcile(f"rows in row group {self._index}", table.num_rows, self._rows)
        if any(column.null_count for column in table.flatten().columns):
            raise OSError("a value is missing")
        return table

    def _reconcile(self, what: str, found: int, manifest: int) -> None:
        """Counts are the manifest's; where a recipe's `limit` has shrunk those, no smaller."""
        if found < manifest or (found > manifest and not self._limited):
            raise DatasetError(
                f"shard {self._uri} has {found:,} {what}, the manifest says {manifest:,}: restore "
                "the shard or pack again"
            )


TYPES = {
    "id": pa.int64(),
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "label": LABEL,
    "digest": pa.string(),
}
"""The columns of a shard, as `pack` writes them; where images may have several labels, a list."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@lru_cache(maxsize=64)
def _footer(uri: str) -> pq.FileMetaData:
    return parquet.read_footer(uri)
