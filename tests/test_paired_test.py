"""Two releases are compared on the same images, and only a real difference counts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binom

from effnet_ray.errors import EvaluationError, ReleaseError
from effnet_ray.inference.paired_test import paired_test
from effnet_ray.release.store import ModelStore

FILES = {"model.safetensors": b"weights", "config.json": b"{}"}


def hits(better: int, worse: int, both: int = 10, neither: int = 5) -> tuple[np.ndarray, ...]:
    """Which images two releases have right."""
    counts = (better, worse, both, neither)
    rows = [(True, False), (False, True), (True, True), (False, False)]
    repeated = ([row] * n for row, n in zip(rows, counts, strict=True))
    pairs = list(itertools.chain.from_iterable(repeated))
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_p_value_is_the_share_of_outcomes_that_are_no_more_likely(
    better: int, worse: int
) -> None:
    result = paired_test(*hits(better, worse))
    assert (result.better, result.worse, result.images) == (better, worse, better + worse + 15)
    chances = binom.pmf(np.arange(better + worse + 1), better + worse, 0.5)
    expected = chances[chances <= chances[better] * (1 + 1e-7)].sum()
    assert result.p_value == pytest.approx(min(1.0, expected), rel=1e-6)
    low, high = result.interval
    assert low <= result.difference <= high
    assert result.is_better == (better > worse and expected < 0.05)


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    draws, inside = np.random.default_rng(0), 0
    for _ in range(400):
        easy = draws.random(300) < 0.7
        first = easy & (draws.random(300) < 0.95)
        second = easy & (draws.random(300) < 0.85)
        low, high = paired_test(first, second).interval
        inside += low <= 0.7 * 0.10 <= high
    assert 0.91 < inside / 400 < 0.99


def test_other_images_are_not_compared() -> None:
    first, second = hits(3, 1)
    with pytest.raises(EvaluationError, match="the data changed"):
        paired_test(first, second[:-1])
    with pytest.raises(EvaluationError, match="0 and 0 images"):
        paired_test(first[:0], second[:0])


def test_an_alias_that_moved_since_the_comparison_stays(tmp_path: object) -> None:
    store = ModelStore(str(tmp_path))
    for run in "abc":
        store.publish("pets", FILES, {"run": run})
    store.promote("pets@v1", "champion")
    store.promote("pets@v3", "champion", force=True)  # meanwhile
    with pytest.raises(ReleaseError, match="no longer points to v1, which it was compared with"):
        store.promote("pets@v2", "champion", replaces=1)
    assert store.find("pets@champion").version == 3
    assert store.promote("pets@v2", "champion", replaces=3).version == 2
