"""Parquet files at any URI: footers, schemas, whole small tables."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage


def read_footer(uri: str) -> pq.FileMetaData:
    """The file's metadata: schema, row groups and their sizes. Raises StorageError."""
    filesystem, path = storage.arrow_filesystem(uri)
    return storage.read_with_retries(uri, lambda: pq.read_metadata(path, filesystem=filesystem))


def read_schema(uri: str) -> pa.Schema:
    """The file's Arrow schema. Raises StorageError."""
    filesystem, path = storage.arrow_filesystem(uri)
    return storage.read_with_retries(uri, lambda: pq.read_schema(path, filesystem=filesystem))


def read_table(uri: str) -> pa.Table:
    """The whole file, read into memory. Raises StorageError."""
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def write_table(uri: str, table: pa.Table, **options: Any) -> None:
    """Write the table as one file, complete or absent; `options` as in `pq.write_table`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    storage.write_bytes(uri, sink.getvalue())


def column_values(table: pa.Table, name: str) -> list[Any]:
    """A column as Python values."""
    values: list[Any] = table[name].to_pylist()
    return values
