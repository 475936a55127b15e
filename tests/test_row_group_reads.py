"""Row groups are read before they are needed: side by side, and once."""

import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.datasets import opened

from effnet_ray.data import parquet_reads, row_group_reads
from effnet_ray.data.chunks import ChunkTask, load_chunks
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.row_group_reads import RowGroupReads, one_ahead
from effnet_ray.errors import DatasetError
from effnet_ray.storage import parquet

PATIENCE_S = 60.0


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Split and number of every row group, as its read ends."""
    done = list[tuple[str, int]]()

    class Recorded(RowGroup):
        def __init__(self, manifest, data, split, group, *, limited):  # type: ignore[no-untyped-def]
            super().__init__(manifest, data, split, group, limited=limited)
            done.append((split, group))

    monkeypatch.setattr(row_group_reads, "RowGroup", Recorded)
    return done


def test_the_next_chunk_is_read_while_one_is_decoded(
    packed: Path, read: list[tuple[str, int]]
) -> None:
    tasks = [ChunkTask("train", 0, 0, 0, 0), ChunkTask("eval", 0, 0, 0, 0)]
    blocks = load_chunks(opened(packed), tasks)
    next(blocks)
    until = time.monotonic() + PATIENCE_S
    while ("eval", 0) not in read and time.monotonic() < until:
        time.sleep(0.01)
    assert ("eval", 0) in read
    list(blocks)
    assert len(read) == len(set(read))


def test_a_row_group_that_cannot_be_read_raises_where_it_is_needed(packed: Path) -> None:
    dataset = opened(packed)
    with RowGroupReads(dataset.manifest, f"{packed}/absent", limited=False) as reads:
        started = reads.start("train", [0])
        with pytest.raises(DatasetError):
            started[0].result()


def test_each_item_comes_when_the_next_one_has_been_made() -> None:
    made = list[int]()

    def items() -> object:
        for item in range(3):
            made.append(item)
            yield item

    seen = [(item, list(made)) for item in one_ahead(items())]  # type: ignore[arg-type]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    assert list(one_ahead([])) == []


def test_threads_that_need_one_footer_read_it_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_reads.forget_footers()
    (uri, *_) = sorted(map(str, packed.rglob("train/*.parquet")))
    reads, all_ask = list[str](), threading.Barrier(8)

    def slow(path: str) -> pq.FileMetaData:
        reads.append(path)
        time.sleep(0.05)
        return parquet.read_footer(path)

    monkeypatch.setattr(parquet_reads, "_read_footer", parquet_reads.lru_cache(maxsize=8)(slow))

    def ask() -> None:
        all_ask.wait()
        parquet_reads.cached_footer(uri)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert reads == [uri]
