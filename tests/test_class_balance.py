"""Class weights and balanced sampling hold for any classes."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from effnet_ray.data.class_balance import Ints, Labels, class_uses, class_weights, image_uses

counts = st.lists(st.integers(0, 10_000), min_size=2, max_size=300).filter(any).map(np.asarray)
few = st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any).map(np.asarray)
balances = st.floats(0, 1)


def labels(counts: Ints) -> Labels:
    """So many images of each class, mixed."""
    values = np.repeat(np.arange(len(counts)), counts)
    return Labels.of(np.random.default_rng(0).permutation(values), len(counts))


# --- weights


@given(counts, st.sampled_from(["balanced", "sqrt"]))
def test_the_mean_weight_of_all_images_is_one(counts: Ints, kind: str) -> None:
    assert np.asarray(class_weights(counts, kind)) @ counts == pytest.approx(counts.sum())


def test_weights_fall_with_the_images_of_a_class_or_with_their_root() -> None:
    counts = np.asarray([100, 900, 400])
    for kind, shares in (("balanced", [36, 4, 9]), ("sqrt", [6, 2, 3])):
        weights = class_weights(counts, kind)
        assert np.divide(weights, weights[1]) == pytest.approx(np.divide(shares, shares[1]))
    assert class_weights(counts, "none") == ()


# --- uses


@given(counts, balances)
def test_uses_are_as_many_as_images_and_the_wanted_share_to_less_than_one(
    counts: Ints, balance: float
) -> None:
    uses = class_uses(counts, balance)
    shares = np.where(counts, np.maximum(counts, 1.0) ** (1 - balance), 0)
    assert uses.sum() == counts.sum()
    assert np.abs(uses - counts.sum() * shares / shares.sum()).max() < 1 + 1e-5
    assert not uses[counts == 0].any() and uses[counts > 0].all()


@given(counts)
def test_the_dials_ends_are_as_often_as_there_are_images_and_all_alike(counts: Ints) -> None:
    assert np.array_equal(class_uses(counts, 0.0), counts)
    level = class_uses(counts, 1.0)[counts > 0]
    assert level.max() - level.min() <= 1


@given(few, balances, st.integers(0, 2**31), st.integers(0, 50))
def test_over_many_epochs_too_the_images_of_a_class_are_used_alike(
    counts: Ints, balance: float, seed: int, epochs: int
) -> None:
    known = labels(counts)
    total = sum(image_uses(known, balance, seed, epoch) for epoch in range(epochs + 1))
    for label in np.flatnonzero(counts):
        of_class = np.asarray(total)[known.values == label]
        assert of_class.max() - of_class.min() <= 1


def test_the_next_epoch_uses_others_and_another_seed_does_too() -> None:
    known = labels(np.asarray([900, 100]))
    given = [(0, 0), (0, 1), (1, 0)]
    one, next_epoch, reseeded = (image_uses(known, 1.0, seed, epoch) for seed, epoch in given)
    assert not np.array_equal(one, next_epoch) and not np.array_equal(one, reseeded)


def test_labels_take_as_few_bytes_as_their_classes_need_and_are_equal_by_content() -> None:
    sizes = [Labels.of([0, 1], classes).values.itemsize for classes in (2, 256, 257, 70_000)]
    assert sizes == [1, 1, 2, 4]
    one, same, other = Labels.of([0, 1, 1], 2), Labels.of([0, 1, 1], 2), Labels.of([0, 1, 0], 2)
    assert one == same and hash(one) == hash(same) and one != other
