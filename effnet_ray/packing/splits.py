"""Which image goes to which split and shard: pure functions of the listing and a seed.

An image's *unit* is what must not be divided: itself, or its group, or, once digests are known,
all that hangs together by group or by equal bytes.
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
    """A number for each distinct value; a null is distinct from all others."""
    numbers: dict[object, int] = {}
    found = [
        numbers.setdefault(("null", place) if value is None else value, len(numbers))
        for place, value in enumerate(values)
    ]
    return np.asarray(found, np.int64)


def assign(
    label: Ints,
    unit: Ints,
    given: Ints,
    classes: Sequence[str],
    fractions: dict[str, float],
    seed: int,
) -> Ints:
    """Each image's split as an index into SPLITS.

    `given` holds splits that the source decides, UNASSIGNED elsewhere. Where it decides no image
    of a split, that split's fraction of every class is taken from the images that are unassigned
    or train, whole units at a time. Raises DatasetError for a class too small for that.
    """
    split = np.where(given == UNASSIGNED, 0, given)
    wanted = {n: f for n, f in fractions.items() if f and not np.any(given == SPLITS.index(n))}
    first = np.unique(unit, return_index=True)[1]  # a unit's class is its first image's
    sizes = np.bincount(unit)[unit[first]]
    units_split = split[first]
    open_units = units_split == 0
    for number, name in enumerate(classes):
        mine = np.flatnonzero(open_units & (label[first] == number))
        order = mine[np.random.default_rng([seed, number]).permutation(len(mine))]
        if 0 < len(mine) <= len(wanted):
            raise DatasetError(
                f"class {name!r} has {int(sizes[mine].sum())} images, too few for every split: "
                "add images or remove the class"
            )
        for place, (wish, fraction) in enumerate(wanted.items()):
            count = max(1, round(fraction * int(sizes[mine].sum())))
            kept = len(wanted) - place  # one unit for each split that is still to come, and train
            taken, order = _take(order, sizes, count, kept)
            units_split[taken] = SPLITS.index(wish)
    return np.where(split == 0, units_split[unit], split)


def strata(
    labels: Sequence[Sequence[int]], unit: Ints, given: Ints, classes: Sequence[str], least: int
) -> tuple[Ints, tuple[str, ...]]:
    """For images of several classes one to divide each by, [N], and the names of these.

    An image's is its rarest, since that is where splits would differ most (so begins Sechidis et
    al. 2011, "On the stratification of multi-label data"). Those that fewer than `least` units are
    left to, and images without any, are divided together; units whose split is `given` as another
    than train do not count, since they are not divided.
    """
    counts = np.bincount(
        np.fromiter(chain.from_iterable(labels), np.int64), minlength=len(classes)
    )
    rest = len(classes)
    found = np.asarray([min(own, key=lambda k: (counts[k], k), default=rest) for own in labels])
    first = np.unique(unit, return_index=True)[1]
    first = first[given[first] <= 0]
    units = np.bincount(found[first], minlength=rest + 1)
    found[(units < least)[found]] = rest
    if 0 < np.count_nonzero(found[first] == rest) < least:
        found[found == rest] = int(units[:rest].argmax())
    return found, (*classes, "images of rare classes or none")


def _take(order: Ints, sizes: Ints, count: int, kept: int) -> tuple[Ints, Ints]:
    """Units from the front until they hold about `count` images, and the rest.

    At least one, where there is one, and never one of the last `kept`.
    """
    held = np.cumsum(sizes[order])
    number = int(np.searchsorted(held - sizes[order] / 2, count, side="left"))
    number = min(max(1, number), len(order) - kept)
    return order[:number], order[number:]


def shuffled(split: Ints, seed: int) -> dict[str, Ints]:
    """The ids of every split in an order of their own; no empty split."""
    found = {}
    for index, name in enumerate(SPLITS):
        ids = np.flatnonzero(split == index)
        if len(ids):
            random = np.random.default_rng([seed, len(SPLITS), index])
            found[name] = ids[random.permutation(len(ids))]
    return found


def merge_groups(digest: Ints, unit: Ints, split: Ints) -> Ints:
    """The splits after moving equal images together: all that hangs together by digest or by
    unit goes to the first of train, eval and test that has any of it."""
    across = _in_several(digest, split)
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


def _in_several(key: Ints, split: Ints) -> npt.NDArray[np.bool_]:
    """Whether an image's key occurs in more than one split."""
    lowest = np.full(int(key.max()) + 1, len(SPLITS))
    highest = np.full(int(key.max()) + 1, UNASSIGNED)
    np.minimum.at(lowest, key, split)
    np.maximum.at(highest, key, split)
    across: npt.NDArray[np.bool_] = (lowest != highest)[key]
    return across


def parts(ids: Ints, sizes: Ints, limit: int) -> list[Ints]:
    """Ids of one shard at a time, each of about `limit` bytes, cut by listed sizes."""
    begins = np.cumsum(sizes[ids]) - sizes[ids]
    shard = begins // limit
    return [ids[shard == number] for number in np.unique(shard)]
