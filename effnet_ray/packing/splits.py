"""Assigns images to splits and shards: pure functions of the listing and a seed.

A *unit* is a set of images that must stay in one split: one image, or its group, or, once digests
are known, all images that are connected by groups or identical bytes.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from effnet_ray.data.manifest import SPLITS
from effnet_ray.errors import DatasetError

Ints = npt.NDArray[np.int64]

UNASSIGNED = -1


def factorize(values: Sequence[object]) -> Ints:
    """Return a number for each distinct value; a null is distinct from all others."""
    numbers: dict[object, int] = {}
    codes = [
        numbers.setdefault(("null", index) if value is None else value, len(numbers))
        for index, value in enumerate(values)
    ]
    return np.asarray(codes, np.int64)


def assign(
    label: Ints,
    unit: Ints,
    given: Ints,
    classes: Sequence[str],
    fractions: dict[str, float],
    seed: int,
) -> Ints:
    """Return each image's split as an index into SPLITS.

    `given` are the source's own splits, UNASSIGNED for images without one. If the source has no
    image of a split, that split's fraction of every class is taken from the unassigned and train
    images, in whole units. Raises DatasetError for a class that is too small for that.
    """
    split = np.where(given == UNASSIGNED, 0, given)
    missing = {n: f for n, f in fractions.items() if f and not np.any(given == SPLITS.index(n))}
    first = np.unique(unit, return_index=True)[1]  # a unit has its first image's class
    sizes = np.bincount(unit)[unit[first]]
    unit_split = split[first]
    movable = unit_split == 0
    for number, name in enumerate(classes):
        units = np.flatnonzero(movable & (label[first] == number))
        order = units[np.random.default_rng([seed, number]).permutation(len(units))]
        images = int(sizes[units].sum())
        if 0 < len(units) <= len(missing):
            raise DatasetError(
                f"class {name!r} has {images} images, too few for all splits: add images or "
                "remove the class"
            )
        for index, (target, fraction) in enumerate(missing.items()):
            count = max(1, round(fraction * images))
            reserved = len(missing) - index  # one unit for each later split, and one for train
            chosen, order = _take(order, sizes, count, reserved)
            unit_split[chosen] = SPLITS.index(target)
    return np.where(split == 0, unit_split[unit], split)


def strata(
    labels: Sequence[Sequence[int]],
    unit: Ints,
    given: Ints,
    classes: Sequence[str],
    min_units: int,
) -> tuple[Ints, tuple[str, ...]]:
    """Return the class by which each multilabel image is split, [N], and the strata's names.

    That is the image's rarest class, since splits would differ most there (the first step of
    Sechidis et al. 2011, "On the stratification of multi-label data"). Images without a class, or
    of classes with fewer than `min_units` units, form one stratum. Units whose `given` split is
    not train do not count, because they are not split.
    """
    counts = np.bincount(
        np.fromiter(chain.from_iterable(labels), np.int64), minlength=len(classes)
    )
    rest = len(classes)
    stratum = np.asarray(
        [min(indices, key=lambda k: (counts[k], k), default=rest) for indices in labels]
    )
    first = np.unique(unit, return_index=True)[1]
    first = first[given[first] <= 0]
    units = np.bincount(stratum[first], minlength=rest + 1)
    stratum[(units < min_units)[stratum]] = rest
    if 0 < np.count_nonzero(stratum[first] == rest) < min_units:
        stratum[stratum == rest] = int(units[:rest].argmax())
    return stratum, (*classes, "rare classes and images without a class")


def _take(order: Ints, sizes: Ints, count: int, reserved: int) -> tuple[Ints, Ints]:
    """Return units from the front that contain about `count` images, and the other units.

    At least one unit if there is one, and none of the last `reserved` units.
    """
    images = np.cumsum(sizes[order])
    number = int(np.searchsorted(images - sizes[order] / 2, count, side="left"))
    number = min(max(1, number), len(order) - reserved)
    return order[:number], order[number:]


def shuffled(split: Ints, seed: int) -> dict[str, Ints]:
    """Return the shuffled ids of every split; no empty split."""
    orders = {}
    for index, name in enumerate(SPLITS):
        ids = np.flatnonzero(split == index)
        if len(ids):
            random = np.random.default_rng([seed, len(SPLITS), index])
            orders[name] = ids[random.permutation(len(ids))]
    return orders


def merge_groups(digest: Ints, unit: Ints, split: Ints) -> Ints:
    """Return the splits after moving identical images to one split.

    All images connected by digests or units go to the first of train, eval and test that has any
    of them. Without identical images in different splits nothing moves.
    """
    across = in_several_splits(digest, split)
    if not across.any():
        return split
    keys, units = int(digest.max()) + 1, int(unit.max()) + 1
    edges = coo_array(
        (np.ones(len(digest)), (digest, unit + keys)), shape=(keys + units, keys + units)
    )
    component = connected_components(edges, directed=False)[1][digest]
    target = np.full(int(component.max()) + 1, len(SPLITS), np.int64)
    np.minimum.at(target, component, split)
    moving = np.isin(component, component[across])
    return np.where(moving, target[component], split)


def in_several_splits(key: Ints, split: Ints) -> npt.NDArray[np.bool_]:
    """Whether each image's key occurs in more than one split."""
    lowest = np.full(int(key.max()) + 1, len(SPLITS))
    highest = np.full(int(key.max()) + 1, UNASSIGNED)
    np.minimum.at(lowest, key, split)
    np.maximum.at(highest, key, split)
    across: npt.NDArray[np.bool_] = (lowest != highest)[key]
    return across


def cut_shards(ids: Ints, sizes: Ints, shard_bytes: int) -> list[Ints]:
    """Cut ids into shards of about `shard_bytes`, by the listed sizes of their images."""
    offsets = np.cumsum(sizes[ids]) - sizes[ids]
    shard = offsets // shard_bytes
    return [ids[shard == number] for number in np.unique(shard)]
