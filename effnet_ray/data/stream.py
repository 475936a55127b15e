"""Ray Data from the plan to a worker's batches: one continuous stream over all epochs.

Each worker runs its own stream: a list of small descriptions of chunks goes in, and one
`map_batches` range-reads, decodes and views each chunk; order is preserved. Evaluation's chunks
stand in the same stream between the epochs', so nothing has to start when an epoch does. The list
is cut into *windows*, because a Ray Data execution plans all its blocks before its first one; the
next window's execution starts while the current one is still being used.

Decode tasks hold no logical CPU: what Train leaves over is divided among executors by integers,
which on a small machine is nothing, forever. `Placement.decode_tasks` bounds them instead.
"""

import itertools
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray.data

from effnet_ray import phases
from effnet_ray.data.chunks import (
    BLOCK_BYTES,
    EVAL_VIEW,
    BadImage,
    Block,
    ChunkTask,
    Dataset,
    load_chunk,
)
from effnet_ray.errors import DatasetError, InputError, StorageError

T = TypeVar("T")

WINDOW_CHUNKS = 512
"""Chunks per Ray Data execution: 1,000 blocks gave their first batch after 3 s here, 100,000
after minutes."""
LEAD_CHUNKS = 64
"""The next window starts when so many chunks of the current one are left."""
READERS = 8
"""Threads that read kept features: each waits for a round trip to storage most of its time."""


@dataclass(frozen=True, slots=True)
class Images:
    """Some images as arrays: what a lane gives to one step, or an eval batch."""

    image: npt.NDArray[Any]
    """[n, R, R, 3] uint8, or features [n, F]."""
    label: npt.NDArray[Any]
    """As in a block."""
    weight: npt.NDArray[np.float32]
    """1, or 0 for a quarantined image."""
    id: npt.NDArray[np.int64]
    bad: dict[int, BadImage]
    """Quarantined here, by id."""


class Stream:
    """A worker's images from step `first_step` to the run's end, in planned order.

    `train` and `eval` must be called in the plan's order, each fully used: the stream is one.
    `eval` only after epochs that are evaluated.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        rank: int,
        workers: int,
        first_step: int,
        decode_tasks: int,
        prefetch_mb: int,
    ) -> None:
        """Start fetching. `first_step` counts over the whole run, from 0."""
        self._plan, self._eval_plan = dataset.plan, dataset.eval_plan
        self._lanes = self._plan.workers_lanes(rank, workers)
        self._eval_chunks = self._eval_plan.workers_chunks(rank, workers)
        self._recipe = dataset.recipe
        self._micro_batch = dataset.recipe.micro_batch or 1
        tasks = self._tasks(first_step)
        here = list(itertools.islice(tasks, len(self._lanes)))
        self._rows = _Rows(unwrap_errors(_blocks(dataset, here, tasks, decode_tasks, prefetch_mb)))

    def _tasks(self, first_step: int) -> Iterator[ChunkTask]:
        """Every chunk this worker will use, in the order in which it will."""
        per_epoch = self._plan.steps_per_epoch
        for epoch in range(first_step // per_epoch, self._recipe.epochs):
            step = first_step - epoch * per_epoch if epoch == first_step // per_epoch else 0
            first_chunk, skip = divmod(step, self._plan.chunk_steps)
            number = phases.view_at(self._recipe, epoch)
            cached = phases.uses_feature_cache(self._recipe, epoch)
            view = EVAL_VIEW if number is None else number
            size = phases.size_at(self._recipe, epoch)
            fresh = not phases.phase_at(self._recipe, epoch).frozen
            size = 0 if size == self._recipe.image_size else size
            for chunk in range(first_chunk, self._plan.chunks_per_epoch):
                taken = skip if chunk == first_chunk else 0
                for lane in self._lanes:
                    rows = self._plan.chunk_rows(lane, chunk, skip_steps=taken)
                    yield ChunkTask(
                        "train", epoch, lane, chunk, taken, rows, view, fresh, size, cached
                    )
            for chunk in self._eval_chunks if phases.evaluates(self._recipe, epoch) else ():
                rows = self._eval_plan.chunk_rows(chunk)
                yield ChunkTask("eval", epoch, 0, chunk, 0, rows, EVAL_VIEW, cached=cached)

    def train(self, step: int) -> Iterator[list[Images]]:
        """The epoch's steps from `step` (of the epoch) on: one `Images` per lane of this worker.

        At an epoch's end a lane may be empty.
        """
        queues = {lane: _Queue() for lane in self._lanes}
        plan = self._plan
        for chunk in range(step // plan.chunk_steps, plan.chunks_per_epoch):
            first, last = chunk * plan.chunk_steps, (chunk + 1) * plan.chunk_steps
            steps = range(max(step, first), min(last, plan.steps_per_epoch))
            taken = max(0, step - first)
            coming = {n: plan.chunk_rows(n, chunk, skip_steps=taken) for n in self._lanes}
            for s in steps:
                for lane in self._lanes:
                    self._fill(queues, coming, lane, plan.lane_rows(s, lane))
                yield [queues[lane].pop(plan.lane_rows(s, lane)) for lane in self._lanes]

    def _fill(
        self, queues: dict[int, "_Queue"], coming: dict[int, int], lane: int, rows: int
    ) -> None:
        """Take from the stream until the lane's queue has so many rows.

        A chunk's rows come lane by lane; `coming` counts those of each that are still to.
        """
        while queues[lane].rows < rows:
            whose = next(of for of, left in coming.items() if left)
            block = self._rows.take(coming[whose])
            queues[whose].push(block)
            coming[whose] -= len(block["label"])

    def eval(self) -> Iterator[Images]:
        """This worker's share of the eval split, in batches of at most one micro-batch."""
        for chunk in self._eval_chunks:
            left = self._eval_plan.chunk_rows(chunk)
            while left:
                batch, queue = min(left, self._micro_batch), _Queue()
                while queue.rows < batch:
                    queue.push(self._rows.take(batch - queue.rows))
                yield queue.pop(batch)
                left -= batch


class _Rows:
    """The stream's rows, however Ray Data has cut them into blocks."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._rest: Block | None = None

    def take(self, most: int) -> Block:
        """The next rows of one block, at least one."""
        block = self._rest or next(self._blocks)
        whole = len(block["label"]) <= most
        self._rest = None if whole else {name: column[most:] for name, column in block.items()}
        return block if whole else {name: column[:most] for name, column in block.items()}


class _Queue:
    """Rows of blocks, first in, first out."""

    def __init__(self) -> None:
        self._blocks: deque[Block] = deque()
        self.rows = 0

    def push(self, block: Block) -> None:
        self._blocks.append(block)
        self.rows += len(block["label"])

    def pop(self, count: int) -> Images:
        parts, left = [], count
        while left:
            block = self._blocks.popleft()
            size = len(block["label"])
            if size > left:
                self._blocks.appendleft({name: column[left:] for name, column in block.items()})
                block = {name: column[:left] for name, column in block.items()}
            parts.append(block)
            left -= len(block["label"])
        self.rows -= count
        return _images(parts)


def _images(parts: Sequence[Block]) -> Images:
    if not parts:
        empty = np.empty(0, np.int64)
        return Images(np.empty((0, 0, 0, 3), np.uint8), empty, np.empty(0, np.float32), empty, {})
    # What lies in one block stays in the object store's memory: no copy on the way to torch.
    joined = (
        parts[0]
        if len(parts) == 1
        else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )
    bad = {
        int(image): BadImage(**json.loads(bad))
        for image, bad in zip(joined["id"], joined["bad"], strict=True)
        if bad
    }
    weight = np.asarray([0.0 if why else 1.0 for why in joined["bad"]], np.float32)
    return Images(joined["image"], joined["label"], weight, joined["id"], bad)


def _blocks(
    dataset: Dataset,
    here: Sequence[ChunkTask],
    tasks: Iterator[ChunkTask],
    decode_tasks: int,
    prefetch_mb: int,
) -> Iterator[Block]:
    """Blocks of all tasks in order, window after window without a pause between them.

    The tasks `here` are done in this process, which has nothing else to do while Ray starts.
    """
    starter = ThreadPoolExecutor(1, thread_name_prefix="next-window")

    def start(window: list[ChunkTask]) -> Iterator[Block]:
        if window[0].cached:
            execution = _read_ahead(dataset, window)
        else:
            execution = _execute(dataset, window, decode_tasks, prefetch_mb)
        first = list(itertools.islice(execution, 1))  # waits until it is there
        return itertools.chain(first, execution)

    try:
        upcoming: Future[Iterator[Block]] | None = None
        windows = _windows(tasks)
        window = next(windows, [])
        if window:
            upcoming = starter.submit(start, window)
        for task in here:
            yield from load_chunk(dataset, task)
        while window:
            current = upcoming.result() if upcoming else start(window)
            left = sum(task.rows for task in window)
            lead = sum(task.rows for task in window[-LEAD_CHUNKS:])
            window, upcoming = next(windows, []), None
            for block in current:
                left -= len(block["label"])
                if window and not upcoming and left <= lead:
                    upcoming = starter.submit(start, window)
                yield block
            if window and not upcoming:
                upcoming = starter.submit(start, window)
    finally:
        starter.shutdown(wait=False, cancel_futures=True)


def _windows(tasks: Iterator[ChunkTask]) -> Iterator[list[ChunkTask]]:
    """The tasks window by window, each of features alone, or of images of one size."""
    for _, alike in itertools.groupby(tasks, key=lambda task: (task.cached, task.size)):
        while window := list(itertools.islice(alike, WINDOW_CHUNKS)):
            yield window


def _read_ahead(dataset: Dataset, window: Sequence[ChunkTask]) -> Iterator[Block]:
    """The features of a window's chunks: small reads, for which Ray Data would be a detour."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="features") as pool:
        coming = deque[Future[list[Block]]]()
        for task in window:
            coming.append(pool.submit(lambda task: list(load_chunk(dataset, task)), task))
            if len(coming) > READERS:
                yield from coming.popleft().result()
        for last in coming:
            yield from last.result()


def unwrap_errors(blocks: Iterator[T]) -> Iterator[T]:
    """What Ray Data gives; an InputError comes out of Ray as the sentence it was."""
    try:
        yield from blocks
    except Exception as error:
        found: InputError | None = None
        cause: BaseException | None = error
        while cause:
            found = cause if isinstance(cause, InputError) else found
            cause = getattr(cause, "cause", None) or cause.__cause__
        if not found:
            raise
        # Ray Data adds lines of its own about retries.
        kind = StorageError if isinstance(found, StorageError) else DatasetError
        raise kind(str(found).partition("\n")[0]) from None


def _execute(
    dataset: Dataset, window: Sequence[ChunkTask], decode_tasks: int, prefetch_mb: int
) -> Iterator[Block]:
    """One Ray Data execution over a window of tasks."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    described = [asdict(task) for task in window]
    share = _chunks_per_task(dataset, len(window), decode_tasks, prefetch_mb)
    blocks = -(-len(window) // share)

    def fetch(batch: Block) -> Iterator[Block]:
        for row in zip(*(column.tolist() for column in batch.values()), strict=True):
            yield from load_chunk(dataset, ChunkTask(**dict(zip(batch, row, strict=True))))

    with ray.data.DataContext.current(data_context(prefetch_mb)):
        # from_items makes its blocks in this process; from_arrow and range would wait for a CPU.
        views = ray.data.from_items(described, override_num_blocks=blocks).map_batches(
            fetch, batch_size=None, num_cpus=0, concurrency=min(decode_tasks, blocks)
        )
        iterator: Iterator[Block] = iter(
            views.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        )
    return iterator


def _chunks_per_task(dataset: Dataset, chunks: int, decode_tasks: int, prefetch_mb: int) -> int:
    """Half of a task's share of what may be held ahead, but enough tasks to share the work.

    Ray Data looks for ended tasks every 0.1 s (`WAIT_FOR_TASK_COMPLETION_TIMEOUT_S`), for blocks
    and then for the end: a task of one chunk left a core without work for a third of its time.
    """
    images = dataset.plan.chunk_steps * dataset.plan.micro_batch
    chunk_bytes = images * 3 * dataset.spec.resolution**2
    fitting = prefetch_mb * 1024**2 // decode_tasks // (2 * chunk_bytes)
    return max(1, min(fitting, chunks // (2 * decode_tasks)))


def data_context(prefetch_mb: int) -> ray.data.DataContext:
    """Ray Data's settings for a stream that holds so much ahead."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray holds back tasks whose blocks, each guessed at this size, would not fit the limit below:
    # at its own 128 MiB a third of the throughput was lost.
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        object_store_memory=prefetch_mb * 1024**2
    )
    return context
