"""Reads row groups of a data set's Parquet files; a damaged read is repeated once.

The second read heals damage that happened in transit. If storage does not answer, that says
nothing about the file: the OutageError is passed on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.errors import DatasetError, OutageError, one_line
from effnet_ray.storage import parquet

T = TypeVar("T")


@lru_cache(maxsize=64)
def cached_footer(uri: str) -> pq.FileMetaData:
    """The file's footer. Clear the cache before a file is read again."""
    return parquet.read_footer(uri)


def read_row_groups(
    uri: str,
    groups: Sequence[int],
    footer: pq.FileMetaData,
    *,
    columns: list[str] | None = None,
    verify: bool = False,
    size: int | None = None,
) -> pa.Table:
    """The row groups as one table. `verify` checks Parquet's page checksums.

    A remote read may take longer the more bytes it moves: `size`. Default: the whole row groups.
    """
    filesystem, path = storage.arrow_filesystem(uri)

    def read() -> pa.Table:
        with pq.ParquetFile(
            path,
            filesystem=filesystem,
            metadata=footer,
            pre_buffer=True,
            page_checksum_verification=verify,
        ) as file:
            return file.read_row_groups(groups, columns=columns)

    if size is None:
        size = sum(footer.row_group(group).total_byte_size for group in groups)
    return storage.read_with_retries(uri, read, size)


def read_twice(read: Callable[[], T], reread: Callable[[], T]) -> T:
    """The result of `read`, or of `reread` if `read` fails for another reason than an outage."""
    try:
        return read()
    except OutageError:
        raise
    except Exception:  # Arrow raises many kinds for damaged files
        return reread()


@contextmanager
def as_dataset_error(what: str, remedy: str) -> Iterator[None]:
    """Raises DatasetError for whatever a damaged file makes Arrow raise, except outages.

    `what` could not be read, also the second time; `remedy` says what to do.
    """
    try:
        yield
    except (DatasetError, OutageError):
        raise
    except Exception as error:
        raise DatasetError(
            f"{what} cannot be read, even on the second attempt ({one_line(error)}): {remedy}"
        ) from None  # `unwrap_errors` raises the innermost InputError
