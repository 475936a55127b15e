"""Classes of different sizes: what the loss of one weighs, and how far an epoch is levelled. Pure.

A levelled epoch has as many images as the train split, but uses those of small classes several
times and only some of large ones. A row group is then read on several *visits*, so that the uses
of an image stand apart; the visits are shuffled and laid end to end, as `order` does with row
groups.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

READS = 3
"""A row group is visited at most so many times for as many uses as it has rows, and once at
least: more visits spread an image's uses better, but each is a read of the whole group."""
POWERS = {"balanced": 1.0, "sqrt": 0.5}
"""Of the images of a class, by which its weight falls."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a train split; equal where classes and digest are."""

    values: npt.NDArray[Any] = field(compare=False, repr=False)
    """[N] unsigned integers, in file order, of as few bytes as hold the classes."""
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
    """What an image's loss is multiplied by, for each class; nothing where `kind` is none.

    The mean over all images (`counts` of each class) is 1.
    """
    if kind == "none":
        return ()
    raw = counts.clip(min=1) ** -POWERS[kind]
    return tuple((raw * (counts.sum() / (raw @ counts))).tolist())


def class_draws(counts: Ints, balance: float) -> Ints:
    """How often an epoch uses the images of each class, all together: [K], ∝ n^(1 - balance).

    Their sum is that of `counts`; what is lost by rounding down goes to the largest remainders.
    """
    images = counts.sum()
    shares = np.where(counts > 0, counts.clip(min=1) ** (1 - balance), 0.0)
    # CPUs may differ in a power's last bit, and two machines must not in the plan.
    wanted = np.round(images * shares / shares.sum(), 6)
    uses: Ints = np.floor(wanted).astype(np.int64)
    uses[np.argsort(uses - wanted, kind="stable")[: images - uses.sum()]] += 1
    return uses


def image_draws(labels: Labels, balance: float, seed: int, epoch: int) -> Ints:
    """How often an epoch uses each image, [N]: within a class as evenly as whole numbers can be.

    Those used once more than others are the next of the class's shuffled order, round and round,
    so that they are even over the epochs, too.
    """
    order, counts = _by_class(labels, seed), labels.counts
    each, more = np.divmod(class_draws(counts, balance), counts.clip(min=1))
    label = labels.values[order]
    place = np.arange(len(label)) - (np.cumsum(counts) - counts)[label]
    uses = np.empty(len(label), np.int64)
    uses[order] = each[label] + ((place - epoch * more[label]) % counts[label] < more[label])
    return uses


@lru_cache(maxsize=2)
def _by_class(labels: Labels, seed: int) -> Ints:
    """The images class by class, shuffled within each."""
    # [seed, epoch, lane, chunk] seed the plan's other draws.
    order: Ints = np.random.default_rng([seed, 0, 0, 0, 1]).permutation(len(labels.values))
    return order[np.argsort(labels.values[order], kind="stable")]


@lru_cache(maxsize=2)
def balanced_epoch(
    row_groups: tuple[int, ...], labels: Labels, balance: float, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """An epoch laid end to end: each image's place in the split [N], and which use of it [N].

    A third of a second for a million images, then remembered by this process. Where every image
    is used once this is the order of an epoch that is not levelled.
    """
    uses = image_draws(labels, balance, seed, epoch)
    image = np.repeat(np.arange(len(uses)), uses)
    use = np.arange(len(image)) - np.repeat(np.cumsum(uses) - uses, uses)
    visit, visits = _visits(np.asarray(row_groups, np.int64), uses)
    place = np.empty(visits, np.int64)
    place[np.random.default_rng([seed, epoch]).permutation(visits)] = np.arange(visits)
    laid = np.argsort(place[visit], kind="stable")
    return image[laid].astype(np.int32), use[laid].astype(np.int32)


def _visits(row_groups: Ints, uses: Ints) -> tuple[Ints, int]:
    """On which visit each use falls [N], uses in file order; and how many visits there are.

    A group's uses are dealt to its visits in turn: so an image's fall on different ones where
    there are as many, and all visits are of the same size.
    """
    group = np.repeat(np.arange(len(row_groups)), row_groups)
    total = np.bincount(group, weights=uses, minlength=len(row_groups)).astype(np.int64)
    most = np.zeros_like(total)
    np.maximum.at(most, group, uses)
    visits = np.minimum(most, np.maximum(1, READS * total // row_groups.clip(min=1)))
    owner = np.repeat(np.arange(len(row_groups)), total)
    turn = np.arange(len(owner)) - (np.cumsum(total) - total)[owner]
    return (np.cumsum(visits) - visits)[owner] + turn % visits[owner], int(visits.sum())
