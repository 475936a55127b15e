"""A worker's images in planned order: one continuous stream over all epochs.

`Stream` lists the chunks that the worker will use, hands them to an executor (Ray Data in
training, threads in tests) and cuts the blocks that come back into micro-batches. Evaluation's
chunks are part of the same stream, so loading never pauses between epochs.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray import phases
from effnet_ray.data.chunks import TEACHER, BadImage, Block, ChunkExecutor, ChunkTask, Dataset


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane's images in one step."""

    index: int
    """Index of the lane in the plan; -1 for images of weight 0 that no lane has."""
    rows: int
    """Number of images."""


@dataclass(frozen=True, slots=True)
class Images:
    """Some images as arrays: a worker's images of one step, or an evaluation batch."""

    image: Sequence[npt.NDArray[Any]]
    """Parts of [n, R, R, 3] uint8, or of features [n, F], as they were loaded: no copies."""
    label: npt.NDArray[Any]
    """As in a block."""
    weight: npt.NDArray[np.float32]
    """1, or 0 for a quarantined image."""
    id: npt.NDArray[np.int64]
    bad: dict[int, BadImage]
    """The quarantined images among them, by id."""
    lanes: tuple[Lane, ...] = ()
    """The lanes of a step, whose images follow one another."""
    teacher: npt.NDArray[np.float16] | None = None
    """[n, K], as in a block; None without a teacher."""


class Stream:
    """A worker's images from step `first_step` to the run's end, in planned order.

    Call `train` and `eval` in the plan's order and use each up: they read from one stream. Call
    `eval` only after epochs that end with an evaluation.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        rank: int,
        workers: int,
        first_step: int | None,
        execute: ChunkExecutor,
        eval_batch: int | None = None,
    ) -> None:
        """`first_step` counts over the whole run, from 0; None trains nothing and evaluates once,
        on images. `execute` loads the chunks.

        `eval_batch`: maximum number of images in an evaluation batch, by default a micro-batch.
        """
        self._plan, self._eval_plan = dataset.plan, dataset.eval_plan
        self._lanes = self._plan.workers_lanes(rank, workers)
        self._eval_chunks = self._eval_plan.workers_chunks(rank, workers)
        self._recipe = dataset.recipe
        self._eval_batch = eval_batch or dataset.recipe.micro_batch or 1
        self._blocks = _BlockReader(execute(dataset, self._tasks(first_step)))

    def _tasks(self, first_step: int | None) -> Iterator[ChunkTask]:
        """Every chunk that this worker will use, in the order of use."""
        if first_step is None:
            yield from self._eval_tasks(self._recipe.epochs - 1, cached=False)
            return
        first_epoch, epoch_step = divmod(first_step, self._plan.steps_per_epoch)
        for epoch in range(first_epoch, self._recipe.epochs):
            yield from self._train_tasks(epoch, epoch_step if epoch == first_epoch else 0)
            if phases.evaluates(self._recipe, epoch):
                cached = phases.uses_feature_cache(self._recipe, epoch)
                yield from self._eval_tasks(epoch, cached=cached)

    def _train_tasks(self, epoch: int, first_step: int) -> Iterator[ChunkTask]:
        """Chunks of an epoch from its step `first_step` on."""
        first_chunk, skip = divmod(first_step, self._plan.chunk_steps)
        size = phases.size_at(self._recipe, epoch)
        for chunk in range(first_chunk, self._plan.chunks_per_epoch):
            skip_steps = skip if chunk == first_chunk else 0
            for lane in self._lanes:
                yield ChunkTask(
                    "train",
                    epoch,
                    lane,
                    chunk,
                    skip_steps,
                    rows=self._plan.chunk_rows(lane, chunk, skip_steps=skip_steps),
                    view=phases.view_at(self._recipe, epoch),
                    new_view_per_use=not phases.phase_at(self._recipe, epoch).frozen,
                    size=0 if size == self._recipe.image_size else size,
                    cached=phases.uses_feature_cache(self._recipe, epoch),
                )

    def _eval_tasks(self, epoch: int, *, cached: bool) -> Iterator[ChunkTask]:
        """Chunks of the evaluation after an epoch."""
        for chunk in self._eval_chunks:
            rows = self._eval_plan.chunk_rows(chunk)
            yield ChunkTask("eval", epoch, 0, chunk, 0, rows=rows, cached=cached)

    def train(self, step: int) -> Iterator[Images]:
        """The epoch's steps from `step` (of the epoch) on: the images of this worker's lanes.

        In an epoch's last step a lane may be empty.
        """
        queues = {lane: _RowQueue() for lane in self._lanes}
        plan = self._plan
        for chunk in range(step // plan.chunk_steps, plan.chunks_per_epoch):
            first, end = chunk * plan.chunk_steps, (chunk + 1) * plan.chunk_steps
            steps = range(max(step, first), min(end, plan.steps_per_epoch))
            skipped = max(0, step - first)
            # Rows of this chunk that the stream has yet to yield, lane by lane.
            unread = {
                lane: plan.chunk_rows(lane, chunk, skip_steps=skipped) for lane in self._lanes
            }
            for chunk_step in steps:
                needed = {lane: plan.lane_rows(chunk_step, lane) for lane in self._lanes}
                for lane, rows in needed.items():
                    self._fill(queues, unread, lane, rows)
                blocks = [
                    block for lane, rows in needed.items() for block in queues[lane].pop(rows)
                ]
                yield _join(blocks, tuple(Lane(lane, rows) for lane, rows in needed.items()))

    def _fill(
        self, queues: dict[int, "_RowQueue"], unread: dict[int, int], lane: int, rows: int
    ) -> None:
        """Read from the stream until the lane's queue has `rows` rows."""
        while queues[lane].rows < rows:
            next_lane = next(other for other, count in unread.items() if count)
            block = self._blocks.read(unread[next_lane])
            queues[next_lane].push(block)
            unread[next_lane] -= len(block["label"])

    def eval(self) -> Iterator[Images]:
        """This worker's share of the eval split, in batches of at most `eval_batch` images."""
        for chunk in self._eval_chunks:
            rows_left = self._eval_plan.chunk_rows(chunk)
            while rows_left:
                batch, queue = min(rows_left, self._eval_batch), _RowQueue()
                while queue.rows < batch:
                    queue.push(self._blocks.read(batch - queue.rows))
                yield _join(queue.pop(batch))
                rows_left -= batch


class _BlockReader:
    """Reads rows from a stream of blocks of any sizes."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._rest: Block | None = None

    def read(self, max_rows: int) -> Block:
        """The next rows of one block: at least one, at most `max_rows`."""
        block = self._rest or next(self._blocks)
        self._rest = None
        if len(block["label"]) > max_rows:
            block, self._rest = _split_block(block, max_rows)
        return block


class _RowQueue:
    """Rows of blocks, first in, first out."""

    def __init__(self) -> None:
        self._blocks: deque[Block] = deque()
        self.rows = 0

    def push(self, block: Block) -> None:
        self._blocks.append(block)
        self.rows += len(block["label"])

    def pop(self, rows: int) -> list[Block]:
        self.rows -= rows
        parts = []
        while rows:
            block = self._blocks.popleft()
            if len(block["label"]) > rows:
                block, rest = _split_block(block, rows)
                self._blocks.appendleft(rest)
            parts.append(block)
            rows -= len(block["label"])
        return parts


def _split_block(block: Block, rows: int) -> tuple[Block, Block]:
    """The first `rows` rows of a block, and the others. No copy."""
    first = {name: column[:rows] for name, column in block.items()}
    return first, {name: column[rows:] for name, column in block.items()}


def _join(blocks: Sequence[Block], lanes: tuple[Lane, ...] = ()) -> Images:
    """The rows of some blocks as `Images`."""
    if not blocks:
        empty = np.empty(0, np.int64)
        return Images((), empty, np.empty(0, np.float32), empty, {}, lanes)
    label, ids, reasons = (
        np.concatenate([block[name] for block in blocks]) for name in ("label", "id", "bad")
    )
    bad = {
        int(image): BadImage(**json.loads(reason))
        for image, reason in zip(ids, reasons, strict=True)
        if reason
    }
    weight = np.asarray([0.0 if reason else 1.0 for reason in reasons], np.float32)
    taught = TEACHER in blocks[0]
    teacher = np.concatenate([block[TEACHER] for block in blocks]) if taught else None
    return Images([block["image"] for block in blocks], label, weight, ids, bad, lanes, teacher)
