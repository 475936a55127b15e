"""Where a split's images are: its row groups, numbered over all shards, as arrays.

Made once per process for each split (`Manifest.index`): with 100 million images in 1.5 million row
groups, any pass over them in Python would cost more than reading a chunk.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class SplitIndex:
    """The row groups of a split. A cheap key of caches: hashed by its length."""

    def __init__(self, sizes: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> None:
        """`sizes`: images of each row group; `groups`: row groups of each shard, by default one
        shard has all."""
        self.sizes: Ints = np.asarray(sizes, np.int64)
        """[G] images of each row group, in file order."""
        counts = np.asarray([len(self.sizes)] if groups is None else groups, np.int64)
        self.first_groups: Ints = np.concatenate([[0], np.cumsum(counts)])
        """[S + 1] number of each shard's first row group; the last is G."""

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, SplitIndex)
            and np.array_equal(self.sizes, other.sizes)
            and np.array_equal(self.first_groups, other.first_groups)
        )

    def __hash__(self) -> int:
        return hash((len(self.sizes), self.images))

    @classmethod
    def of(cls, shards: Iterable[Sequence[int]]) -> Self:
        """The index of shards that are given as images per row group."""
        shards = list(shards)
        parts = [np.asarray(shard, np.int64) for shard in shards]
        return cls(np.concatenate([np.empty(0, np.int64), *parts]), list(map(len, shards)))

    @cached_property
    def ends(self) -> Ints:
        """[G] number of the image after each row group's last."""
        return np.cumsum(self.sizes)

    @property
    def images(self) -> int:
        """Images of the split."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def first_images(self) -> Ints:
        """[S + 1] number of each shard's first image; the last is the number of images."""
        return np.concatenate([[0], self.ends])[self.first_groups]

    def locate(self, images: Ints) -> tuple[Ints, Ints]:
        """The row group of each of some images, given by number, and its row there."""
        group = np.searchsorted(self.ends, images, side="right")
        return group, images - (self.ends - self.sizes)[group]

    def shards(self, groups: Ints) -> tuple[Ints, Ints]:
        """The shard of each of some row groups, and the number of its first row there."""
        shard = np.searchsorted(self.first_groups, groups, side="right") - 1
        first_image = self.ends[groups] - self.sizes[groups]
        return shard, first_image - self.first_images[shard]
