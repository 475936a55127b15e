"""Loads chunks with a bounded thread pool in this process: no Ray.

Training reads cached features this way, because small reads gain nothing from Ray Data. Tests and
benchmarks load images with it.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from effnet_ray.data.chunks import Block, ChunkTask, Dataset, load_chunks


@dataclass(frozen=True, slots=True)
class ThreadExecutor:
    """Executes chunk tasks in threads and yields their blocks in task order."""

    threads: int = 8
    """Chunks loaded at a time. A thread waits for storage most of the time."""

    def __call__(self, dataset: Dataset, tasks: Iterable[ChunkTask]) -> Iterator[Block]:
        """Blocks of all tasks, in order. Holds at most `threads` + 1 chunks."""

        def load(task: ChunkTask) -> list[Block]:
            return list(load_chunks(dataset, [task]))

        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="chunks")
        pending = deque[Future[list[Block]]]()
        try:
            for task in tasks:
                pending.append(pool.submit(load, task))
                if len(pending) > self.threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
