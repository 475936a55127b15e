"""An evaluation's metrics are scikit-learn's, however the images are batched."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn import metrics
from support.evaluations import everything

from effnet_ray.inference.metric_sums import BINS, ScoredImages
from effnet_ray.inference.multiclass import MulticlassMetrics, score_images
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5
from effnet_ray.train.metrics import MetricSums

CLASSES = 7


def random_logits(images: int, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """[n, 7] float32, often right, and labels of six of the classes."""
    draws = np.random.default_rng(seed)
    label = draws.integers(0, CLASSES - 1, images)
    logits = draws.normal(size=(images, CLASSES)).astype(np.float32)
    logits[np.arange(images), label] += draws.normal(1.0, 1.0, images)
    return logits, label


def judged(logits: npt.NDArray[Any], label: npt.NDArray[np.int64], first: int = 0) -> ScoredImages:
    ids = np.arange(first, first + len(label))
    texts = {
        "path": [f"{i}.jpg" for i in ids],
        "error": [""] * len(ids),
        "thumbnail": [""] * len(ids),
        "map": [""] * len(ids),
    }
    return (
        score_images(logits, label)
        | {"image": ids}
        | {k: np.array(v, object) for k, v in texts.items()}
    )


def added(parts: Iterable[ScoredImages], examples: int = 5) -> MulticlassMetrics:
    figures = MulticlassMetrics(CLASSES, examples)
    for part in parts:
        figures.add(part)
    return figures


def cut(judged: ScoredImages, at: Iterable[int]) -> list[ScoredImages]:
    edges = [0, *sorted(at), len(judged["label"])]
    return [{name: column[a:b] for name, column in judged.items()} for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 200), max_size=6))
def test_streaming_equals_all_at_once_to_the_last_digit(edges: list[int]) -> None:
    whole = judged(*random_logits(200))
    whole["error"][[3, 77]] = "torn"
    assert everything(added(cut(whole, edges))) == everything(added([whole]))


def test_the_figures_are_scikit_learns() -> None:
    logits, label = random_logits(500)
    figures = added([judged(logits, label)])
    predicted, every = logits.argmax(1), np.arange(CLASSES)
    probability = torch.from_numpy(logits).double().softmax(1).numpy()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        label, predicted, labels=every, zero_division=0
    )
    result = [(one.precision, one.recall, one.f1, one.support) for one in figures.per_class]
    assert np.allclose(np.array(result).T, [precision, recall, f1, support])
    assert figures.share(EVAL_TOP1) == pytest.approx(metrics.accuracy_score(label, predicted))
    top5 = metrics.top_k_accuracy_score(label, probability, k=5, labels=every)
    assert figures.share(EVAL_TOP5) == pytest.approx(top5)
    assert figures.loss == pytest.approx(metrics.log_loss(label, probability, labels=every))
    matrix = metrics.confusion_matrix(label, predicted, labels=every)
    assert all(matrix[pair] == images for pair, images in figures.confusion.items())
    assert figures.confusion.total() == matrix.sum() == 500
    assert figures.macro_f1 == pytest.approx(f1[support > 0].mean())
    wrong = matrix - np.diag(np.diag(matrix))
    assert figures.confused_pairs[0][2] == wrong.max()


def test_calibration_is_guos() -> None:
    """The definition, written down once more."""
    logits, label = random_logits(500)
    figures = added([judged(logits, label)])
    probability = torch.from_numpy(logits).double().softmax(1).numpy()
    confidence, right = probability.max(1), probability.argmax(1) == label
    ece = 0.0
    for m in range(1, BINS + 1):
        inside = ((m - 1) / BINS < confidence) & (confidence <= m / BINS)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert figures.ece == pytest.approx(ece)
    assert sum(one.count for one in figures.bins) == 500


def test_the_figures_are_those_of_training() -> None:
    """Ties and numbers that are none included."""
    logits, label = random_logits(50)
    logits[:10] = 0
    logits[10:13, 2] = np.nan
    tally = MetricSums.of(torch.from_numpy(logits), torch.from_numpy(label), torch.ones(50))
    figures = added([judged(logits, label)])
    assert (figures.share(EVAL_TOP1), figures.share(EVAL_TOP5)) == (
        tally.share(EVAL_TOP1),
        tally.share(EVAL_TOP5),
    )
    sane = slice(13, None)
    tally = MetricSums.of(
        torch.from_numpy(logits[sane]), torch.from_numpy(label[sane]), torch.ones(37)
    )
    assert added([judged(logits[sane], label[sane])]).loss == pytest.approx(tally.loss, abs=1e-6)


def test_the_worst_mistakes_are_those_of_highest_loss() -> None:
    logits, label = random_logits(300)
    whole = judged(logits, label)
    wrong = np.flatnonzero(whole["predicted"] != label)
    worst = wrong[np.argsort(-whole["loss"][wrong])][:5]
    assert [m.image for m in added([whole]).worst_mistakes] == worst.tolist()
    assert added([whole]).worst_mistakes[0].path == f"{worst[0]}.jpg"


def test_suspected_labels_are_those_of_confident_learning() -> None:
    """Northcutt et al. 2021, eq. 1 and 2, written down once more; planted errors come first."""
    logits, label = random_logits(400)
    planted = np.arange(0, 400, 80)
    logits[planted] = 0
    logits[planted, (label[planted] + 1) % (CLASSES - 1)] = 12
    probability = torch.from_numpy(logits).double().softmax(1).numpy()
    limits = np.full(CLASSES, np.inf)
    for k in set(label.tolist()):
        limits[k] = probability[label == k, k].mean()
    predicted = probability.argmax(1)
    sure = (predicted != label) & (probability.max(1) >= limits[predicted])
    figures = added([judged(logits, label)])
    assert np.allclose(figures.thresholds, limits)
    assert figures.label_error_count == sure.sum() > len(planted)
    assert {m.image for m in figures.label_errors} == set(planted.tolist())


def test_an_image_that_could_not_be_read_is_named_and_counts_for_nothing() -> None:
    logits, label = random_logits(20)
    whole = judged(logits, label)
    whole["error"][4] = "truncated"
    figures, without = added([whole]), np.arange(20) != 4
    assert figures.unreadable == {4: ("4.jpg", "truncated")}
    assert (figures.processed, figures.images) == (20, 19)
    rest = added([judged(logits[without], label[without])])
    assert (figures.loss, figures.share(EVAL_TOP1), figures.confusion) == (
        rest.loss,
        rest.share(EVAL_TOP1),
        rest.confusion,
    )


def test_classes_without_images_do_not_count() -> None:
    figures = added([judged(*random_logits(50))])
    empty = figures.per_class[CLASSES - 1]
    assert (empty.support, empty.recall) == (0, 0)
    assert figures.thresholds[CLASSES - 1] == np.inf
    assert added([]).loss == added([]).ece == added([]).macro_f1 == 0
