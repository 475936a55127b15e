"""The plan of an epoch: the order of its images, as a pure function. No Ray, no storage.

The train split's row groups are shuffled, concatenated, and cut into `batch_size / micro_batch`
*lanes* of equal length. A global batch takes one micro-batch from every lane. A lane is read in
*chunks* of a few hundred images, and the rows of a chunk are shuffled: storage is still read in
ranges of row groups, yet neighbours in a row group are spread over the chunk's steps. Any worker
can run any lane, so the order does not depend on the number of workers. With class-balanced
sampling `class_balance` orders the epoch, which is then cut in the same way.

A *use* of an image is one occurrence of it in an epoch; without class-balanced sampling every
image has one. A *read* of a row group is one pass over it in an epoch; with class-balanced
sampling a row group may have several, each with some of its images' uses.
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import numpy.typing as npt

from effnet_ray.data.class_balance import Labels, balanced_epoch, class_uses
from effnet_ray.data.split_index import SplitIndex

Rows = npt.NDArray[np.int64]
"""[n, 3], in planned order: index of the row group in its split; row in the row group; index of
the image's use in the epoch, from 0."""

CHUNK_IMAGES = 256
"""Images per chunk. A range read costs a round trip to storage, so it should fetch hundreds; more
would make the first step wait. Chosen, not measured."""
MAX_CHUNKS_IMAGES = 2048
"""With many lanes chunks are smaller: one chunk of every lane has at most this many images, 300 MB
of views of 224 px. Chosen, not measured."""
MIN_CHUNK_IMAGES = 64
"""Smallest chunk: a row group as `pack` writes it. Most of a smaller range read would be
wasted."""


@dataclass(frozen=True)
class Plan:
    """The order of every epoch: a pure function of its fields."""

    split: SplitIndex
    """The train split's row groups."""
    seed: int
    batch_size: int
    micro_batch: int
    labels: Labels | None = None
    """Labels of the train split; required if `balance` is not 0."""
    balance: float = 0.0
    """Strength of class-balanced sampling, 0 to 1; 0: every image once."""

    @property
    def images(self) -> int:
        """Uses of images per epoch."""
        return self.split.images

    @property
    def max_uses(self) -> int:
        """Maximum number of uses of one image in an epoch."""
        if not self.balance:
            return 1
        assert self.labels
        counts = self.labels.counts
        return int(np.max(-(-class_uses(counts, self.balance) // counts.clip(min=1))))

    @property
    def lanes(self) -> int:
        """Micro-batches per global batch."""
        return self.batch_size // self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last may be short."""
        return -(-self.images // self.batch_size)

    @property
    def chunk_steps(self) -> int:
        """Steps of an epoch per chunk of a lane."""
        images = max(MIN_CHUNK_IMAGES, min(CHUNK_IMAGES, MAX_CHUNKS_IMAGES // self.lanes))
        return max(1, images // self.micro_batch)

    @property
    def chunks_per_epoch(self) -> int:
        """Chunks per lane and epoch."""
        return -(-self.steps_per_epoch // self.chunk_steps)

    def lane_rows(self, step: int, lane: int) -> int:
        """Images of the lane in a step of an epoch (`step` from 0)."""
        if step < self.images // self.batch_size:
            return self.micro_batch
        rest = self.images - step * self.batch_size
        return max(0, rest // self.lanes + (lane < rest % self.lanes))

    def lane_length(self, lane: int) -> int:
        """Images of the lane per epoch; the lanes' lengths differ by at most one."""
        whole = self.images // self.batch_size
        return whole * self.micro_batch + self.lane_rows(whole, lane)

    def chunk_rows(self, lane: int, index: int, *, skip_steps: int = 0) -> int:
        """Number of rows that `chunk` returns."""
        size = self.chunk_steps * self.micro_batch
        size = min(size, self.lane_length(lane) - index * size)
        return max(0, size - skip_steps * self.micro_batch)

    def chunk(self, epoch: int, lane: int, index: int, *, skip_steps: int = 0) -> Rows:
        """Rows of chunk `index` of a lane in planned order, without its first `skip_steps` steps.

        May be empty at the end of an epoch.
        """
        size = self.chunk_steps * self.micro_batch
        first = index * size
        last = min(first + size, self.lane_length(lane))
        if first >= last:
            return np.empty((0, 3), np.int64)
        start = sum(self.lane_length(before) for before in range(lane))
        rows = self._rows(epoch, start + first, start + last)
        random = np.random.default_rng([self.seed, epoch, lane, index])
        return rows[random.permutation(len(rows))][skip_steps * self.micro_batch :]

    def _rows(self, epoch: int, first: int, last: int) -> Rows:
        """Rows from `first` to before `last` of the epoch, before its chunks are shuffled."""
        if self.balance:
            assert self.labels
            balanced = balanced_epoch(self.split, self.labels, self.balance, self.seed, epoch)
            images, uses = (part[first:last].astype(np.int64) for part in balanced)
            return np.stack([*self.split.locate(images), uses], axis=1)
        order, ends = _shuffled(self.split, self.seed, epoch)
        positions = np.arange(first, last)
        slot = np.searchsorted(ends, positions, side="right")
        begins = ends[slot] - self.split.sizes[order[slot]]
        return np.stack([order[slot], positions - begins, np.zeros_like(slot)], axis=1)

    def workers_lanes(self, rank: int, workers: int) -> list[int]:
        """Lanes that worker `rank` runs: rank, rank + workers, …"""
        return list(range(rank, self.lanes, workers))


@lru_cache(maxsize=4)
def _shuffled(
    split: SplitIndex, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The epoch's order of row groups, and the end of each when they are concatenated."""
    order = np.random.default_rng([seed, epoch]).permutation(len(split.sizes))
    return order, np.cumsum(split.sizes[order])


def image_random(seed: int, epoch: int, image_id: int, use: int = 0) -> Random:
    """The random generator for an image's view in an epoch, the same on every worker.

    `use` counts the image's uses in the epoch, from 0. Python's generator: seeding it and a few
    draws take a quarter of numpy's time.
    """
    suffix = f" {use}" if use else ""
    return Random(f"{seed} {epoch} {image_id}{suffix}")


@dataclass(frozen=True)
class EvalPlan:
    """The eval split in file order, cut into chunks that are assigned to the workers in turn."""

    split: SplitIndex
    """The split's row groups."""

    @property
    def images(self) -> int:
        """Images of the split."""
        return self.split.images

    @property
    def chunk_images(self) -> int:
        """Images per chunk: about a sixteenth of the split, so that up to sixteen workers share a
        small split evenly, and at least 32, so that a read is worth its round trip. Chosen, not
        measured."""
        return min(CHUNK_IMAGES, max(32, self.images // 16))

    @property
    def chunks(self) -> int:
        """Chunks of the split."""
        return -(-self.images // self.chunk_images)

    def chunk_rows(self, index: int) -> int:
        """Images of one chunk."""
        return min(self.chunk_images, self.images - index * self.chunk_images)

    def chunk(self, index: int) -> Rows:
        """Rows of one chunk, in file order."""
        first = index * self.chunk_images
        positions = np.arange(first, min(first + self.chunk_images, self.images))
        return np.stack([*self.split.locate(positions), np.zeros_like(positions)], axis=1)

    def workers_chunks(self, rank: int, workers: int) -> list[int]:
        """Chunks that worker `rank` evaluates: rank, rank + workers, …"""
        return list(range(rank, self.chunks, workers))
