"""Loads chunks with Ray Data.

A Ray Data execution plans all its blocks before it yields the first one. The tasks are therefore
cut into *windows*, one execution each, and the next window starts while the current one is still
being used.
"""

import itertools
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from effnet_ray.data.chunks import BLOCK_BYTES, Block, ChunkTask, Dataset, load_chunks
from effnet_ray.data.decode_limit import share_limit
from effnet_ray.data.decode_machines import (
    Shares,
    TaskDealer,
    cluster_shares,
    map_on_machines,
)
from effnet_ray.data.thread_executor import ThreadExecutor
from effnet_ray.errors import DatasetError, InputError, StorageError

STEP_S = 0.05
"""Seconds between two steps of Ray Data's scheduling, which itself waits up to 0.1 s for tasks."""

T = TypeVar("T")
Window = list[ChunkTask]

WINDOW_CHUNKS = 512
"""Chunks per Ray Data execution. Measured here: an execution of 1,000 blocks yields its first
batch after 3 s, one of 100,000 blocks after minutes."""
LEAD_CHUNKS = 64
"""The next window starts when this many chunks of the current one are left. Of 256 images
each, they last 12 s at the 1,353 images/s of `benchmarks/results/ingest.txt`: longer than the next
window takes to yield its first batch."""


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Executes chunk tasks with Ray Data and yields their blocks in task order.

    Tasks of cached features run in threads of this process.
    """

    decode_tasks: int | None
    """Parallel Ray Data tasks, of all windows together. None: as many as `shares` has when a
    window starts."""
    prefetch_mb: int
    """Decoded images to hold ahead, MB."""
    local_chunks: int = 0
    """Number of first chunks to load in this process while Ray Data starts. With one per lane,
    the first step does not wait for Ray."""
    window_chunks: int = WINDOW_CHUNKS
    lead_chunks: int = LEAD_CHUNKS
    shares: Callable[[], Shares] = cluster_shares
    """How many tasks each machine runs at a time, or in proportion if `decode_tasks` is given."""
    chunks_per_task: int | None = None
    """Chunks that one Ray Data task loads. Default: as many as `prefetch_mb` allows."""

    def __call__(self, dataset: Dataset, tasks: Iterator[ChunkTask]) -> Iterator[Block]:
        """Blocks of all tasks, in order, without a pause between windows."""

        stream = uuid.uuid4().hex

        def execute(window: Window) -> Iterator[Block]:
            if window[0].cached:
                return ThreadExecutor()(dataset, window)
            return self._execute_window(dataset, window, stream)

        local = list(itertools.islice(tasks, self.local_chunks))
        local_blocks = load_chunks(dataset, local)
        windows = _cut_windows(tasks, self.window_chunks)
        return unwrap_errors(run_windows(windows, execute, self.lead_chunks, local_blocks))

    def _execute_window(self, dataset: Dataset, window: Window, stream: str) -> Iterator[Block]:
        """Blocks of one Ray Data execution, which shares its limit of tasks with its stream's."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"task": json.dumps(asdict(task))} for task in window]
        tasks = self.decode_tasks or max(1, int(sum(self.shares().values())))
        per_task = self.chunks_per_task or self._chunks_per_task(dataset, len(window), tasks)
        blocks = -(-len(window) // per_task)

        def load(batch: Block) -> Iterator[Block]:
            tasks = (ChunkTask(**json.loads(task)) for task in batch["task"].tolist())
            yield from load_chunks(dataset, tasks)

        context = data_context(self.prefetch_mb)
        share_limit(context, stream)
        with ray.data.DataContext.current(context):
            # from_items makes its blocks in this process; from_arrow and range wait for a CPU.
            loaded = map_on_machines(
                ray.data.from_items(rows, override_num_blocks=blocks),
                load,
                tasks=min(tasks, blocks),
                dealer=TaskDealer(self.shares),
            )
            iterator: Iterator[Block] = iter(
                loaded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
            )
        return iterator

    def _chunks_per_task(self, dataset: Dataset, chunks: int, tasks: int) -> int:
        """Chunks that fill half of a task's share of `prefetch_mb`, or fewer to occupy all tasks.

        Ray Data polls for finished tasks every 0.1 s (`WAIT_FOR_TASK_COMPLETION_TIMEOUT_S`), once
        for their blocks and once for their end: with one chunk per task a core was idle for a
        third of the time.
        """
        images = dataset.plan.chunk_steps * dataset.plan.micro_batch
        chunk_bytes = images * 3 * dataset.spec.resolution**2
        fitting = self.prefetch_mb * 1024**2 // tasks // (2 * chunk_bytes)
        return max(1, min(fitting, chunks // (2 * tasks)))


def _cut_windows(tasks: Iterator[ChunkTask], window_chunks: int) -> Iterator[Window]:
    """The tasks in windows, each of cached features only or of images of one size only."""
    for _, similar in itertools.groupby(tasks, key=lambda task: (task.cached, task.size)):
        while window := list(itertools.islice(similar, window_chunks)):
            yield window


def run_windows(
    windows: Iterator[Window],
    execute: Callable[[Window], Iterator[Block]],
    lead_chunks: int,
    local_blocks: Iterable[Block] = (),
) -> Iterator[Block]:
    """The local blocks, then the blocks of all windows, in order.

    The first window starts before the local blocks are loaded; each later one starts when
    `lead_chunks` chunks of the window before it are left.
    """
    starter = ThreadPoolExecutor(1, thread_name_prefix="next-window")

    def start(window: Window) -> Iterator[Block]:
        execution = execute(window)
        first = list(itertools.islice(execution, 1))  # waits for the first block
        return itertools.chain(first, execution)

    try:
        window = next(windows, [])
        upcoming: Future[Iterator[Block]] | None = (
            starter.submit(start, window) if window else None
        )
        yield from local_blocks
        while window:
            blocks = upcoming.result() if upcoming else start(window)
            rows_left, lead_rows = _rows(window), _rows(window[-lead_chunks:])
            window, upcoming = next(windows, []), None
            for block in blocks:
                rows_left -= len(block["label"])
                if window and not upcoming and rows_left <= lead_rows:
                    upcoming = starter.submit(start, window)
                yield block
            if window and not upcoming:
                upcoming = starter.submit(start, window)
    finally:
        starter.shutdown(wait=False, cancel_futures=True)


def _rows(tasks: Sequence[ChunkTask]) -> int:
    return sum(task.rows for task in tasks)


def unwrap_errors(blocks: Iterator[T]) -> Iterator[T]:
    """Yields from a Ray Data execution; re-raises a task's InputError without Ray's wrapping."""
    try:
        yield from blocks
    except Exception as error:
        innermost: InputError | None = None
        cause: BaseException | None = error
        while cause:
            innermost = cause if isinstance(cause, InputError) else innermost
            cause = getattr(cause, "cause", None) or cause.__cause__
        if not innermost:
            raise
        # The first line is the message; Ray Data appends lines about its retries.
        kind = StorageError if isinstance(innermost, StorageError) else DatasetError
        raise kind(str(innermost).partition("\n")[0]) from None


class PacedSteps(ExecutionCallback):  # type: ignore[misc]  # Ray Data has no types
    """Makes an execution's scheduling loop take at most one step per `STEP_S`.

    The loop is a thread of the process that uses the blocks. It waits for tasks to finish, but not
    while finished blocks wait to be used (ray 2.60 `process_completed_tasks`): then it turns
    without a pause, holding Python's lock, for as long as decoding is ahead of training.
    """

    def __init__(self) -> None:
        self._last_step = 0.0

    def on_execution_step(self, executor: object) -> None:
        """Ray Data calls this after each step."""
        time.sleep(max(0.0, self._last_step + STEP_S - time.monotonic()))
        self._last_step = time.monotonic()


def data_context(prefetch_mb: int) -> ray.data.DataContext:
    """Ray Data's settings for an ordered execution that holds `prefetch_mb` MB ahead."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray estimates each task's blocks at this size and holds back tasks that would exceed the
    # limit below. With its default of 128 MiB, throughput fell by a third.
    context.target_max_block_size = BLOCK_BYTES
    callbacks = context.custom_execution_callback_classes
    context.custom_execution_callback_classes = [*callbacks, PacedSteps]
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        object_store_memory=prefetch_mb * 1024**2
    )
    return context
