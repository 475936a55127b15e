"""Splits and shards: pure, complete, fair; groups stay together."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st

from effnet_ray.errors import DatasetError
from effnet_ray.packing import splits
from effnet_ray.packing.splits import UNASSIGNED, assign, merge_groups

COUNTS = st.lists(st.integers(3, 60), min_size=2, max_size=6)
FRACTION = st.floats(0.01, 0.45)


def labels(counts: Sequence[int]) -> splits.Ints:
    return np.repeat(np.arange(len(counts)), counts)


def nothing_given(count: int) -> splits.Ints:
    return np.full(count, UNASSIGNED)


@given(COUNTS, FRACTION, st.just(0.0) | FRACTION, st.integers(0, 2**31))
def test_every_image_is_in_one_split_and_every_class_in_each(
    counts: Sequence[int], eval_fraction: float, test_fraction: float, seed: int
) -> None:
    label = labels(counts)
    fractions = {"eval": eval_fraction, "test": test_fraction}
    names = list(map(str, range(len(counts))))
    split = assign(label, np.arange(len(label)), nothing_given(len(label)), names, fractions, seed)
    shuffled = splits.shuffled(split, seed)
    assert sorted(np.concatenate(list(shuffled.values()))) == list(range(len(label)))
    for index, fraction in enumerate(fractions.values(), start=1):
        result = np.bincount(label[split == index], minlength=len(counts))
        off = np.abs(result - fraction * np.asarray(counts))
        assert off.max() <= (1 if fraction else 0)
    assert set(label[split == 0]) == set(range(len(counts)))


@given(COUNTS, st.integers(1, 12), FRACTION, st.integers(0, 2**31))
def test_a_unit_is_never_divided_and_shares_hold_within_one_unit(
    counts: Sequence[int], size: int, fraction: float, seed: int
) -> None:
    label = labels(counts)
    unit = splits.factorize([(int(of), int(i) // size) for i, of in enumerate(label)])
    names = list(map(str, range(len(counts))))
    try:
        split = assign(label, unit, nothing_given(len(label)), names, {"eval": fraction}, seed)
    except DatasetError as error:
        assert "too few for all splits" in str(error)
        return
    for number in set(unit):
        assert len(set(split[unit == number])) == 1
    for number, count in enumerate(counts):
        assert abs((split[label == number] == 1).sum() - fraction * count) <= size + 1


@given(st.data())
def test_given_splits_stay_and_only_missing_ones_are_taken(data: st.DataObject) -> None:
    counts = data.draw(COUNTS)
    label = labels(counts)
    given_ = np.asarray(data.draw(st.lists(st.sampled_from([UNASSIGNED, 0, 1, 2]),
                                           min_size=len(label), max_size=len(label))))  # fmt: skip
    names = list(map(str, range(len(counts))))
    try:
        split = assign(label, np.arange(len(label)), given_, names, {"eval": 0.2, "test": 0.0}, 0)
    except DatasetError:
        return
    assert np.array_equal(split[given_ > 0], given_[given_ > 0])
    if (given_ == 1).any():
        assert not (split[given_ <= 0] == 1).any()


def test_a_class_too_small_is_refused_by_name() -> None:
    with pytest.raises(DatasetError, match="class 'b' has 1 images, too few"):
        assign(np.asarray([0, 0, 1]), np.arange(3), nothing_given(3), ["a", "b"], {"eval": 0.2}, 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)), min_size=1))
def test_what_hangs_together_ends_in_one_split_and_the_rest_stays(
    images: Sequence[tuple[int, int, int]],
) -> None:
    digest, unit, split = (
        np.asarray(splits.factorize(c)) if i < 2 else np.asarray(c)
        for i, c in enumerate(zip(*images, strict=True))
    )
    # Units are whole before: a unit's split is its first image's.
    first = {number: split[unit == number][0] for number in set(unit)}
    split = np.asarray([first[number] for number in unit])
    final = merge_groups(digest, unit, split)
    for key in (digest, unit):
        for number in set(key):
            assert len(set(final[key == number])) == 1
    assert np.all(final <= split)  # only ever towards train
    alone = [
        i
        for i in range(len(split))
        if len({*split[digest == digest[i]]}) == 1 and (digest == digest[i]).sum() == 1
        and (unit == unit[i]).sum() == 1
    ]  # fmt: skip
    assert np.array_equal(final[alone], split[alone])


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 200))
def test_parts_hold_every_image_once_in_order_and_about_the_limit(
    sizes: Sequence[int], limit: int
) -> None:
    ids = np.random.default_rng(0).permutation(len(sizes))
    cut = splits.cut_shards(ids, np.asarray(sizes), limit)
    assert np.array_equal(np.concatenate(cut), ids)
    assert all(np.asarray(sizes)[part].sum() < limit + 50 for part in cut)


def test_a_null_is_a_unit_of_its_own() -> None:
    assert list(splits.factorize(["a", None, "a", None])) == [0, 1, 0, 2]
