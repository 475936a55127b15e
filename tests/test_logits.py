"""Probabilities and ranks: torch and NumPy give the same values."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from effnet_ray.inference.logits import (
    first_label_rank,
    label_rank,
    log_probabilities,
    numpy_probabilities,
    predicted_class,
    probabilities,
)
from effnet_ray.inference.scorer import top_k
from effnet_ray.train import metrics


def random_logits(seed: int, scale: float = 5.0) -> np.ndarray:
    """[40, 6] float32, with ties, very large values and values that are not finite."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(scale=scale, size=(40, 6)).astype(np.float32).round(1)
    logits[0] = 0
    logits[1, 2], logits[2, 3], logits[3, 4] = np.nan, np.inf, -np.inf
    logits[4] = [900, -900, 0, 900, 1, 2]
    return logits


@pytest.mark.parametrize("multilabel", [False, True])
@given(seed=st.integers(0, 10**6))
def test_torch_and_numpy_agree_on_probabilities(multilabel: bool, seed: int) -> None:
    logits = random_logits(seed)
    expected = probabilities(torch.from_numpy(logits).double(), multilabel=multilabel).numpy()
    result = numpy_probabilities(logits, multilabel=multilabel)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-300)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(
            np.exp(log_probabilities(logits, multilabel=multilabel)), result, rtol=1e-12
        )


@given(st.integers(0, 10**6))
def test_ranks_are_those_of_training(seed: int) -> None:
    logits, draws = random_logits(seed), np.random.default_rng(seed)
    label, labels = draws.integers(0, 6, 40), (draws.random((40, 6)) < 0.3).astype(np.uint8)
    tensor = torch.from_numpy(logits)
    assert (
        label_rank(logits, label).tolist()
        == metrics.label_rank(tensor, torch.from_numpy(label)).tolist()
    )
    first = metrics.first_label_rank(tensor, torch.from_numpy(labels))
    assert first_label_rank(logits, labels).tolist() == first.tolist()
    assert label_rank(logits, predicted_class(logits)).max() == 0


@given(st.integers(0, 10**6))
def test_the_first_of_the_top_classes_is_the_predicted_class(seed: int) -> None:
    logits = random_logits(seed)[5:]  # finite
    indices, values = top_k(probabilities(torch.from_numpy(logits), multilabel=False), 3)
    assert indices[:, 0].tolist() == predicted_class(logits).tolist()
    assert (values.diff(dim=1) <= 0).all()
