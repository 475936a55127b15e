"""The metrics of several classes per image are scikit-learn's, and training's."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn import metrics

from effnet_ray.inference.metric_sums import BINS, ScoredImages
from effnet_ray.inference.multilabel import MultilabelMetrics, score_images
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5
from effnet_ray.train.metrics import MetricSums, ScoreCollector

CLASSES = 7
Array = npt.NDArray[Any]


def drawn(images: int, seed: int = 0) -> tuple[Array, Array]:
    """Logits [n, 7] float32, often right, and labels [n, 7]; the last class has no images."""
    draws = np.random.default_rng(seed)
    label = (draws.random((images, CLASSES)) < 0.3).astype(np.uint8)
    label[:, -1] = 0
    logits = draws.normal(-1.0, 1.0, (images, CLASSES)) + label * draws.normal(
        2.0, 1.5, (images, CLASSES)
    )
    return logits.astype(np.float32), label


def probability(logits: Array) -> Array:
    return torch.from_numpy(logits).double().sigmoid().numpy()


def judged(logits: Array, label: Array) -> ScoredImages:
    ids = np.arange(len(label))
    texts = {
        "path": [f"{i}.jpg" for i in ids],
        "error": [""] * len(ids),
        "thumbnail": [""] * len(ids),
        "map": [""] * len(ids),
    }
    said = score_images(logits, [np.flatnonzero(own).tolist() for own in label])
    return said | {"image": ids} | {k: np.array(v, object) for k, v in texts.items()}


def added(*parts: ScoredImages) -> MultilabelMetrics:
    figures = MultilabelMetrics(CLASSES, examples=5)
    for part in parts:
        figures.add(part)
    return figures


def cut(judged: ScoredImages, at: Iterable[int]) -> list[ScoredImages]:
    edges = [0, *sorted(at), len(judged["label"])]
    return [{name: column[a:b] for name, column in judged.items()} for a, b in pairwise(edges)]


def everything(figures: MultilabelMetrics) -> list[Any]:
    return [
        figures.loss,
        figures.share(EVAL_TOP1),
        figures.share(EVAL_TOP5),
        figures.mean_ap,
        figures.macro_f1,
        figures.micro_f1,
        figures.ece,
        figures.bins,
        figures.per_class,
        figures.worst_mistakes,
        figures.label_errors,
        figures.label_error_count,
        figures.thresholds.tolist(),
        figures.unreadable,
        figures.images,
    ]


@given(st.lists(st.integers(0, 200), max_size=6))
def test_streaming_equals_all_at_once_to_the_last_digit(edges: list[int]) -> None:
    whole = judged(*drawn(200))
    whole["error"][[3, 77]] = "torn"
    assert everything(added(*cut(whole, edges))) == everything(added(whole))


@given(st.integers(0, 10**6))
def test_the_figures_are_scikit_learns(seed: int) -> None:
    logits, label = drawn(120, seed)
    figures, said = added(judged(logits, label)), probability(logits) >= 0.5
    output = metrics.precision_recall_fscore_support(label, said, zero_division=0)
    result = [(one.precision, one.recall, one.f1, one.support) for one in figures.per_class]
    assert np.allclose(np.array(result).T, output)
    *present, none = [one.ap for one in figures.per_class]
    assert none is None
    assert present == pytest.approx(
        metrics.average_precision_score(label[:, :-1], logits[:, :-1], average=None).tolist()
    )
    assert figures.mean_ap == pytest.approx(np.mean(present))
    assert figures.macro_f1 == pytest.approx(
        metrics.f1_score(label[:, :-1], said[:, :-1], average="macro", zero_division=0)
    )
    micro = metrics.f1_score(label, said, average="micro", zero_division=0)
    assert figures.micro_f1 == pytest.approx(micro)


@given(st.integers(0, 10**6))
def test_the_figures_are_those_of_training(seed: int) -> None:
    """Scores that are equal and images of no class included."""
    logits, label = drawn(60, seed)
    logits, label[0] = logits.round(), 0
    figures = added(judged(logits, label))
    tensors = torch.from_numpy(logits), torch.from_numpy(label), torch.ones(60)
    tally, ranking = MetricSums.of(*tensors), ScoreCollector(CLASSES, torch.device("cpu"))
    ranking.add(*tensors)
    assert (figures.share(EVAL_TOP1), figures.share(EVAL_TOP5)) == (
        tally.share(EVAL_TOP1),
        tally.share(EVAL_TOP5),
    )
    assert figures.loss == pytest.approx(tally.loss, abs=1e-6)
    assert tuple(one.ap for one in figures.per_class) == ranking.over_workers()


def test_calibration_is_naeinis_over_every_image_and_class() -> None:
    """The definition, written down once more."""
    logits, label = drawn(300)
    figures = added(judged(logits, label))
    share, true = probability(logits).ravel(), label.ravel() == 1
    error = 0.0
    for m in range(1, BINS + 1):
        inside = ((m - 1) / BINS < share) & (share <= m / BINS)
        if inside.any():
            error += inside.mean() * abs(true[inside].mean() - share[inside].mean())
    assert figures.ece == pytest.approx(error) and error > 0.01
    assert sum(one.count for one in figures.bins) == 300 * CLASSES


def test_the_worst_mistakes_are_those_of_highest_loss() -> None:
    logits, label = drawn(300)
    tensors = torch.from_numpy(logits), torch.from_numpy(label).float()
    each = torch.nn.functional.binary_cross_entropy_with_logits(*tensors, reduction="none")
    loss, said = each.mean(1).numpy(), probability(logits) >= 0.5
    wrong = np.flatnonzero((said != label).any(axis=1))
    expected = wrong[np.argsort(-loss[wrong])][:5]
    result = added(judged(logits, label)).worst_mistakes
    assert [mistake.image for mistake in result] == expected.tolist()
    for mistake in result:
        own, taken = label[mistake.image], said[mistake.image]
        assert {k for k, _ in mistake.label} == set(np.flatnonzero(own))
        assert {k for k, _ in mistake.predicted} == set(np.flatnonzero(taken))
        assert {k for k, _ in mistake.false_negatives} == set(np.flatnonzero(own & ~taken))
        assert {k for k, _ in mistake.false_positives} == set(np.flatnonzero(taken & (own == 0)))
        shares = probability(logits)[mistake.image]
        assert all(
            share == pytest.approx(shares[k]) for k, share in mistake.label + mistake.predicted
        )


def test_suspected_labels_are_those_of_confident_learning_for_each_class() -> None:
    """Written down once more; planted errors, labels lacking or too many, come first."""
    logits, label = drawn(400)
    lacking, doubtful = [0, 80, 160], [240, 320]
    logits[lacking, 2], label[lacking, 2] = 12, 0
    logits[doubtful, 4], label[doubtful, 4] = -12, 1
    share, suspected = probability(logits), np.zeros(400, bool)
    for k in range(CLASSES - 1):
        own = label[:, k] == 1
        there, away = share[own, k].mean(), (1 - share[~own, k]).mean()
        suspected |= ~own & (share[:, k] >= 0.5) & (share[:, k] >= there)
        suspected |= own & (share[:, k] < 0.5) & (1 - share[:, k] >= away)
    figures = added(judged(logits, label))
    assert figures.label_error_count == suspected.sum() > 5
    assert {each.image for each in figures.label_errors} == {*lacking, *doubtful}
    for each in figures.label_errors:
        which = each.missing_labels if each.image in lacking else each.wrong_labels
        assert {2, 4} & {k for k, _ in which}
    every = MultilabelMetrics(CLASSES, examples=400)
    every.add(judged(logits, label))
    assert len(every.label_errors) == every.label_error_count  # one rule


def test_an_image_that_could_not_be_read_is_named_and_counts_for_nothing() -> None:
    logits, label = drawn(20)
    whole, without = judged(logits, label), np.arange(20) != 4
    whole["error"][4] = "truncated"
    figures, rest = added(whole), added(judged(logits[without], label[without]))
    assert figures.unreadable == {4: ("4.jpg", "truncated")}
    assert (figures.processed, figures.images) == (20, 19)
    assert everything(figures)[:8] == everything(rest)[:8]


def test_nothing_is_divided_by_no_images() -> None:
    empty = added()
    assert empty.loss == empty.mean_ap == empty.ece == empty.macro_f1 == empty.micro_f1 == 0
    assert (
        empty.label_error_count,
        empty.label_errors,
        empty.worst_mistakes,
        empty.worst_classes,
    ) == (0, [], [], [])


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_make_the_loss_none(score: float) -> None:
    logits, label = drawn(3)
    logits[1], label[1] = score, score > 0
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(added(judged(logits, label)).loss)
