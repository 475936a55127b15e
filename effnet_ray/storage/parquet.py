"""Parquet files at any URI: footers, schemas, whole small tables."""

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage


def read_footer(uri: str) -> pq.FileMetaData:
    """The file's metadata: schema, row groups and their sizes. Raises StorageError."""
    return _read(uri, pq.read_metadata)


def read_schema(uri: str) -> pa.Schema:
    """The file's Arrow schema. Raises StorageError."""
    return _read(uri, pq.read_schema)


def _read(uri: str, read: Callable[..., Any]) -> Any:
    """The result of one of PyArrow's functions of a path, with retries."""

    def attempt() -> Any:
        filesystem, path = storage.arrow_filesystem(uri)  # each time: its credentials may expire
        return read(path, filesystem=filesystem)

    return storage.read_with_retries(uri, attempt)


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
