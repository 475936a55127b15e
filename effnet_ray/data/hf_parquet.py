"""Parquet in Hugging Face's image layout: columns `image` {bytes, path} and a label."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.errors import DatasetError
from effnet_ray.storage.parquet import column_values

LARGEST_GROUP = 256 * 1024**2
"""A row group is read as a whole, whatever part of it is wanted."""


def holds_images(schema: pa.Schema) -> bool:
    """Whether there is an `image` column of {bytes, path}."""
    if "image" not in schema.names or not pa.types.is_struct(schema.field("image").type):
        return False
    kind = schema.field("image").type
    return bool(kind.get_field_index("bytes") >= 0)


def read_row_group(uri: str, group: int, label: str, footer: pq.FileMetaData) -> pa.Table:
    """A row group as `image`, `label` and each image's `digest`.

    Raises DatasetError where columns or their types are not the layout's.
    """
    filesystem, path = storage.arrow_filesystem(uri)

    def fetch() -> pa.Table:
        with pq.ParquetFile(path, filesystem=filesystem, metadata=footer, pre_buffer=True) as file:
            names = file.schema_arrow.names
            return file.read_row_group(group, [n for n in ("image", label) if n in names])

    table = storage.read_with_retries(uri, fetch, footer.row_group(group).total_byte_size)
    fits = label in table.schema.names and holds_images(table.schema)
    if not fits or not pa.types.is_integer(table.schema.field(label).type):
        raise DatasetError(
            f"{uri} is not `image` {{bytes, path}} with numbers in {label!r}: name the column "
            "with --label-column, or pack without --in-place"
        )
    images = column_values(table, "image")
    if any(not image or image["bytes"] is None for image in images):
        raise DatasetError(f"{uri} has rows without an image's bytes: pack without --in-place")
    return pa.table(
        {
            "image": [{"bytes": i["bytes"], "path": i.get("path") or ""} for i in images],
            "label": pa.array(column_values(table, label), pa.int64()),
            "digest": [hashlib.sha256(image["bytes"]).hexdigest() for image in images],
        }
    )


def digest(table: pa.Table) -> str:
    """SHA-256 of a row group's digests and labels."""
    rows = zip(column_values(table, "digest"), column_values(table, "label"), strict=True)
    return hashlib.sha256(repr(list(rows)).encode()).hexdigest()
