"""Parquet in Hugging Face's image layout: a column `image` {bytes, path}, and a label column."""

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray.data.parquet_reads import read_row_groups
from effnet_ray.errors import DatasetError
from effnet_ray.storage.parquet import column_values

LARGEST_GROUP = 256 * 1024**2
"""Bytes of the largest row group that is accepted: it is always read as a whole."""


def holds_images(schema: pa.Schema) -> bool:
    """Whether there is an `image` column of {bytes, path}."""
    return "image" in schema.names and _has_bytes(schema.field("image").type)


def image_column(schema: pa.Schema) -> str:
    """The column of images: `image`, or the only one of {bytes, path}, or else of bytes.

    Empty if there is none, or if it is not clear.
    """
    structs = [field.name for field in schema if _has_bytes(field.type)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    for names in (structs, binaries):
        if "image" in names or len(names) == 1:
            return "image" if "image" in names else names[0]
    return ""


def image_value(value: Any) -> tuple[bytes | None, str]:
    """Bytes and path of a value of the image column; None and "" if there are none."""
    if isinstance(value, bytes):
        return value, ""
    return (value or {}).get("bytes"), (value or {}).get("path") or ""


def _has_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_row_group(uri: str, group: int, label: str, footer: pq.FileMetaData) -> pa.Table:
    """A row group as columns `image`, `label` and each image's `digest`.

    `label` names the label column. Raises DatasetError if columns or types are not the layout's.
    """
    existing = footer.schema.to_arrow_schema().names
    columns = [name for name in ("image", label) if name in existing]
    table = read_row_groups(uri, [group], footer, columns=columns)
    fits = label in table.schema.names and holds_images(table.schema)
    if not fits or not pa.types.is_integer(table.schema.field(label).type):
        raise DatasetError(
            f"{uri} does not have a column `image` {{bytes, path}} and an integer column "
            f"{label!r}: set the label column with --label-column, or pack without --in-place"
        )
    images = column_values(table, "image")
    if any(not image or image["bytes"] is None for image in images):
        raise DatasetError(f"{uri} has rows without image bytes: pack without --in-place")
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
