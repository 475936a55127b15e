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
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data

from effnet_ray.data.images import decode, eval_view, train_view
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.order import EvalPlan, Plan, Rows, image_random
from effnet_ray.data.rows import RowGroup
from effnet_ray.errors import DatasetError, ImageError, InputError, StorageError
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec

WINDOW_CHUNKS = 512
"""Chunks per Ray Data execution: 1,000 blocks gave their first batch after 3 s here, 100,000
after minutes."""
LEAD_CHUNKS = 64
"""The next window starts when so many chunks of the current one are left."""
BLOCK_BYTES = 32 * 1024**2
"""A task hands on its chunk in pieces of about this size: 600 px views weigh 1 MB each."""

Block = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Bad:
    """A quarantined image."""

    path: str
    """In the source that was packed."""
    reason: str
    digest: str
    """SHA-256 of the bytes that were packed."""


@dataclass(frozen=True, slots=True)
class Images:
    """Some images as arrays: what a lane gives to one step, or an eval batch."""

    image: npt.NDArray[np.uint8]
    """[n, R, R, 3]"""
    label: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    """1, or 0 for a quarantined image."""
    id: npt.NDArray[np.int64]
    bad: dict[int, Bad]
    """Quarantined here, by id."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All a decode task needs to know; sent to the cluster once per window."""

    manifest: Manifest
    data: str
    """URI of the manifest's folder."""
    recipe: Recipe
    """Settled."""
    spec: InputSpec

    @property
    def plan(self) -> Plan:
        """The train split's plan."""
        rows = tuple(rows for _, _, rows in self.manifest.row_groups("train"))
        return Plan(rows, self.recipe.seed, self.recipe.batch_size, self.recipe.micro_batch or 1)

    @property
    def eval_plan(self) -> EvalPlan:
        """The eval split's plan."""
        return EvalPlan(tuple(rows for _, _, rows in self.manifest.row_groups("eval")))


@dataclass(frozen=True, slots=True)
class Task:
    """One chunk to fetch."""

    split: str
    epoch: int
    lane: int
    chunk: int
    skip_steps: int
    """Steps of the chunk that a resumed run has taken already: never read."""
    rows: int = 0
    """Images left then: the stream counts them."""


def load_chunk(dataset: Dataset, task: Task) -> Iterator[Block]:
    """Read, check, decode and view one chunk, in pieces. Runs in a Ray Data task."""
    if task.split == "train":
        rows = dataset.plan.chunk(task.epoch, task.lane, task.chunk, skip_steps=task.skip_steps)
    else:
        rows = dataset.eval_plan.chunk(task.chunk)
    piece = max(1, BLOCK_BYTES // (3 * dataset.spec.resolution**2))
    # The first step's images go ahead: at a run's start they are waited for.
    ahead = min(piece, dataset.recipe.micro_batch or piece)
    groups: dict[int, RowGroup] = {}
    for part in np.split(rows, range(ahead, len(rows), piece)):
        if len(part):
            yield _load(dataset, task, part, groups)


def _load(dataset: Dataset, task: Task, rows: Rows, groups: dict[int, RowGroup]) -> Block:
    """The views of some rows; `groups` keeps the chunk's row groups between pieces."""
    size = dataset.spec.resolution
    image = np.zeros((len(rows), size, size, 3), np.uint8)
    columns: dict[str, list[Any]] = {"label": [], "id": [], "bad": []}
    for slot, (group, row) in enumerate(rows.tolist()):
        if group not in groups:
            groups[group] = RowGroup(
                dataset.manifest, dataset.data, task.split, group,
                limited=dataset.recipe.limit is not None,
            )  # fmt: skip
        record = groups[group].record(row)
        columns["label"].append(record["label"])
        columns["id"].append(record["id"])
        try:
            if not record["as_packed"]:
                raise ImageError("its bytes are not those that were packed (SHA-256 differs)")
            image[slot] = _view(dataset, task, record)
            columns["bad"].append("")
        except ImageError as error:
            bad = Bad(record["image"]["path"], str(error), record["digest"])
            columns["bad"].append(json.dumps(asdict(bad)))
    return {
        "image": image,
        "label": np.asarray(columns["label"], np.int64),
        "id": np.asarray(columns["id"], np.int64),
        "bad": np.asarray(columns["bad"], object),
    }


def _view(dataset: Dataset, task: Task, record: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The planned view of one image."""
    data = record["image"]["bytes"]
    if task.split != "train":
        return eval_view(decode(data), dataset.spec)
    random = image_random(dataset.recipe.seed, task.epoch, record["id"])
    return train_view(data, dataset.spec, dataset.recipe, random)


class Stream:
    """A worker's images from step `first_step` to the run's end, in planned order.

    `train` and `eval` must be called in the plan's order, each fully used: the stream is one.
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
        self._micro_batch = dataset.recipe.micro_batch or 1
        tasks = self._tasks(first_step, dataset.recipe.epochs)
        here = list(itertools.islice(tasks, len(self._lanes)))
        self._rows = _Rows(_plainly(_blocks(dataset, here, tasks, decode_tasks, prefetch_mb)))

    def _tasks(self, first_step: int, epochs: int) -> Iterator[Task]:
        """Every chunk this worker will use, in the order in which it will."""
        per_epoch = self._plan.steps_per_epoch
        for epoch in range(first_step // per_epoch, epochs):
            step = first_step - epoch * per_epoch if epoch == first_step // per_epoch else 0
            first_chunk, skip = divmod(step, self._plan.chunk_steps)
            for chunk in range(first_chunk, self._plan.chunks_per_epoch):
                taken = skip if chunk == first_chunk else 0
                for lane in self._lanes:
                    rows = self._plan.chunk_rows(lane, chunk, skip_steps=taken)
                    yield Task("train", epoch, lane, chunk, taken, rows)
            for chunk in self._eval_chunks:
                yield Task("eval", epoch, 0, chunk, 0, self._eval_plan.chunk_rows(chunk))

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
        int(image): Bad(**json.loads(bad))
        for image, bad in zip(joined["id"], joined["bad"], strict=True)
        if bad
    }
    weight = np.asarray([0.0 if why else 1.0 for why in joined["bad"]], np.float32)
    return Images(joined["image"], joined["label"], weight, joined["id"], bad)


def _blocks(
    dataset: Dataset,
    here: Sequence[Task],
    tasks: Iterator[Task],
    decode_tasks: int,
    prefetch_mb: int,
) -> Iterator[Block]:
    """Blocks of all tasks in order, window after window without a pause between them.

    The tasks `here` are done in this process, which has nothing else to do while Ray starts.
    """
    starter = ThreadPoolExecutor(1, thread_name_prefix="next-window")

    def start(window: list[Task]) -> Iterator[Block]:
        execution = _execute(dataset, window, decode_tasks, prefetch_mb)
        first = list(itertools.islice(execution, 1))  # waits until it is there
        return itertools.chain(first, execution)

    try:
        upcoming: Future[Iterator[Block]] | None = None
        window = list(itertools.islice(tasks, WINDOW_CHUNKS))
        if window:
            upcoming = starter.submit(start, window)
        for task in here:
            yield from load_chunk(dataset, task)
        while window:
            current = upcoming.result() if upcoming else start(window)
            left = sum(task.rows for task in window)
            lead = sum(task.rows for task in window[-LEAD_CHUNKS:])
            window, upcoming = list(itertools.islice(tasks, WINDOW_CHUNKS)), None
            for block in current:
                left -= len(block["label"])
                if window and not upcoming and left <= lead:
                    upcoming = starter.submit(start, window)
                yield block
            if window and not upcoming:
                upcoming = starter.submit(start, window)
    finally:
        starter.shutdown(wait=False, cancel_futures=True)


def _plainly(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks; an InputError comes out of Ray as the sentence it was."""
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
    dataset: Dataset, window: Sequence[Task], decode_tasks: int, prefetch_mb: int
) -> Iterator[Block]:
    """One Ray Data execution over a window of tasks."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    described = [asdict(task) for task in window]
    share = _chunks_per_task(dataset, len(window), decode_tasks, prefetch_mb)
    blocks = -(-len(window) // share)

    def fetch(batch: Block) -> Iterator[Block]:
        for row in zip(*(column.tolist() for column in batch.values()), strict=True):
            yield from load_chunk(dataset, Task(**dict(zip(batch, row, strict=True))))

    with ray.data.DataContext.current(settings(prefetch_mb)):
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


def settings(prefetch_mb: int) -> ray.data.DataContext:
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
