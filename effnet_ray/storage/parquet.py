"""Parquet files at any URI: footers, schemas, whole small tables.

Files are untrusted: nothing that was read is used before `check_plain`.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.errors import DamagedError, EffnetRayError, StorageError, quote


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Raises DamagedError for what Arrow raises for a damaged file.

    OSErrors are storage's, and too little memory is no damage. Extension types that are
    registered with Arrow may raise anything.
    """
    try:
        yield
    except (OSError, MemoryError, EffnetRayError):
        raise
    except Exception as error:
        raise DamagedError(
            f"{uri} is not readable Parquet ({quote(error)}): replace it with an intact copy"
        ) from error


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

    with errors(uri):
        return storage.read_with_retries(uri, attempt)


def read_table(uri: str) -> pa.Table:
    """The whole file, read into memory. Raises StorageError."""
    return parse_table(storage.read_bytes(uri), uri)


def parse_table(content: bytes, uri: str) -> pa.Table:
    """The table in a file's content. Raises StorageError."""
    with errors(uri):
        try:
            table = pq.read_table(io.BytesIO(content))
        except OSError as error:  # here, too, it means damage
            raise ValueError(error) from error
    check_plain(table.schema, uri)
    return table


def check_plain(schema: pa.Schema, uri: str) -> None:
    """Raises StorageError for a column whose values Python code makes of what is stored.

    Ray Data registers such types with Arrow; that of Python objects unpickles its values.
    """
    plain = plain_columns(schema)
    for column in schema:
        if column.name not in plain:
            raise StorageError(
                f"the column {column.name} of {uri} has the type {column.type}, whose values may "
                "contain code: write it with Arrow's own types"
            )


def plain_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns of Arrow's own types alone, also within lists and structs."""
    return [column.name for column in schema if _is_plain(column.type)]


def _is_plain(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ExtensionType):
        return False
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        inner.append(kind.value_type)
    return all(map(_is_plain, inner))


def write_table(uri: str, table: pa.Table, **options: Any) -> None:
    """Write the table as one file, complete or absent; `options` as in `pq.write_table`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    storage.write_bytes(uri, sink.getvalue())


def column_values(table: pa.Table, name: str) -> list[Any]:
    """A column as Python values."""
    values: list[Any] = table[name].to_pylist()
    return values
