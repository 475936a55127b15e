"""Class imbalance: class weights of the loss, and class-balanced sampling. Pure functions.

A balanced epoch has as many uses of images as the train split has images (see `plan` for *use* and
*read*): several for images of small classes, and none for some images of large ones. A row group
has several reads, so that the uses of an image are spread over the epoch. The reads are shuffled
and concatenated as `plan` does with row groups.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from effnet_ray.data.split_index import SplitIndex

Ints = npt.NDArray[np.int64]

READS_PER_PASS = 3
"""Reads of a row group per epoch: three times the mean number of uses of its images, at least one.
More reads distribute an image's uses better, but each reads the whole group. Chosen, not measured.
"""
POWERS = {"balanced": 1.0, "sqrt": 0.5}
"""Exponents p: the weight of a class of n images is proportional to n^-p."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a train split. Compared by class count and digest."""

    values: npt.NDArray[Any] = field(compare=False, repr=False)
    """[N] in file order: the smallest unsigned integer type that holds the classes."""
    classes: int
    digest: str
    """SHA-256 of the values."""

    @classmethod
    def of(cls, values: npt.ArrayLike, classes: int) -> Self:
        """Labels [N], each from 0 to `classes` - 1."""
        compact = np.asarray(values, np.min_scalar_type(classes - 1))
        return cls(compact, classes, hashlib.sha256(compact.tobytes()).hexdigest())

    @property
    def counts(self) -> Ints:
        """Images of each class, [K]."""
        counts: Ints = np.bincount(self.values, minlength=self.classes)
        return counts


def class_weights(counts: Ints, kind: str) -> tuple[float, ...]:
    """The loss weight of each class; empty if `kind` is "none".

    The mean over all images is 1. `counts` are the images of each class.
    """
    if kind == "none":
        return ()
    raw = counts.clip(min=1) ** -POWERS[kind]
    return tuple((raw * (counts.sum() / (raw @ counts))).tolist())


def class_uses(counts: Ints, balance: float) -> Ints:
    """Uses of each class's images in an epoch: [K], proportional to n^(1 - balance).

    The sum is that of `counts`: classes with the largest remainders are rounded up.
    """
    images = counts.sum()
    shares = np.where(counts > 0, counts.clip(min=1) ** (1 - balance), 0.0)
    # CPUs may differ in the last bit of a power, but the plan must be the same on all machines.
    exact = np.round(images * shares / shares.sum(), 6)
    uses: Ints = np.floor(exact).astype(np.int64)
    uses[np.argsort(uses - exact, kind="stable")[: images - uses.sum()]] += 1
    return uses


def image_uses(labels: Labels, balance: float, seed: int, epoch: int) -> Ints:
    """Uses of each image in an epoch, [N]. Within a class the numbers differ by at most one.

    The images with one use more rotate through the class's shuffled order from epoch to epoch, so
    that uses are also even over the epochs.
    """
    order, counts = _by_class(labels, seed), labels.counts
    base, extra = np.divmod(class_uses(counts, balance), counts.clip(min=1))
    label = labels.values[order]
    place = np.arange(len(label)) - (np.cumsum(counts) - counts)[label]
    uses = np.empty(len(label), np.int64)
    has_one_more = (place - epoch * extra[label]) % counts[label] < extra[label]
    uses[order] = base[label] + has_one_more
    return uses


@lru_cache(maxsize=2)
def _by_class(labels: Labels, seed: int) -> Ints:
    """The images class by class, shuffled within each."""
    # The plan's other draws are seeded by [seed, epoch, lane, chunk].
    order: Ints = np.random.default_rng([seed, 0, 0, 0, 1]).permutation(len(labels.values))
    return order[np.argsort(labels.values[order], kind="stable")]


@lru_cache(maxsize=2)
def balanced_epoch(
    split: SplitIndex, labels: Labels, balance: float, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The order of a balanced epoch: images by their place in the split [N], and their use [N].

    Takes a third of a second for a million images; the process caches it. If every image is used
    once, this is the order of an epoch without balancing.
    """
    uses = image_uses(labels, balance, seed, epoch)
    image = np.repeat(np.arange(len(uses)), uses)
    use = np.arange(len(image)) - np.repeat(np.cumsum(uses) - uses, uses)
    read, reads = _assign_reads(split.sizes, uses)
    position = np.empty(reads, np.int64)
    position[np.random.default_rng([seed, epoch]).permutation(reads)] = np.arange(reads)
    order = np.argsort(position[read], kind="stable")
    return image[order].astype(np.int32), use[order].astype(np.int32)


def _assign_reads(row_groups: Ints, uses: Ints) -> tuple[Ints, int]:
    """The read of each use [N], uses in file order; and the number of reads.

    A group's uses are assigned to its reads in turn: an image's uses fall on different reads if
    there are enough of them, and all reads have about the same size.
    """
    group = np.repeat(np.arange(len(row_groups)), row_groups)
    total = np.bincount(group, weights=uses, minlength=len(row_groups)).astype(np.int64)
    max_uses = np.zeros_like(total)
    np.maximum.at(max_uses, group, uses)
    reads = np.minimum(max_uses, np.maximum(1, READS_PER_PASS * total // row_groups.clip(min=1)))
    owner = np.repeat(np.arange(len(row_groups)), total)
    turn = np.arange(len(owner)) - (np.cumsum(total) - total)[owner]
    return (np.cumsum(reads) - reads)[owner] + turn % reads[owner], int(reads.sum())
