"""Reads row groups in threads, before they are needed.

A read from object storage mostly waits: two requests, and two more where the shard's footer is not
cached. The row groups of a chunk are read side by side, and those of the next chunk while this one
is decoded.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise
from types import TracebackType
from typing import Self, TypeVar

from effnet_ray.data.manifest import Manifest
from effnet_ray.data.row_group import RowGroup

T = TypeVar("T")
StartedReads = dict[int, Future[RowGroup]]
"""Number of a row group in its split → the row group, once it has been read."""

READERS = 8
"""Reads side by side in a task: a chunk of 256 images is in five row groups of 64. Chosen, not
measured."""


class RowGroupReads:
    """Threads that read row groups of a data set; a context manager that stops them."""

    def __init__(self, manifest: Manifest, data: str, *, limited: bool) -> None:
        """`limited`: `limit` has cut the manifest."""
        self._manifest, self._data, self._limited = manifest, data, limited
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="row-groups")

    def start(self, split: str, groups: Iterable[int]) -> StartedReads:
        """Start to read some row groups; their results raise what `RowGroup` raises."""
        return {
            group: self._pool.submit(
                RowGroup, self._manifest, self._data, split, group, limited=self._limited
            )
            for group in groups
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each when the one after it has been made."""
    for item, _ in pairwise(chain(items, [None])):
        assert item is not None
        yield item
