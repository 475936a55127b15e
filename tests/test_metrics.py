"""Metrics are sums: they equal torch's own, however the images were batched."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor
from torch.testing import assert_close

from effnet_ray.train.collectives import worker_group
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.evaluation import EvalResult, best_result, epoch_report
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5
from effnet_ray.train.metrics import ClassCounts, MetricSums


def scores(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits, labels and weights of which about a quarter is 0."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=draws) * 3
    label = torch.randint(0, classes, (images,), generator=draws)
    weight = (torch.rand(images, generator=draws) > 0.25).float()
    return logits, label, weight


@given(images=st.integers(1, 40), classes=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_sums_are_torchs_cross_entropy_and_topk(images: int, classes: int, seed: int) -> None:
    logits, label, _ = scores(images, classes, seed)
    tally = MetricSums.of(logits, label, torch.ones(images))
    hits = logits.topk(min(5, classes)).indices == label[:, None]
    assert tally.loss == pytest.approx(float(F.cross_entropy(logits, label)), abs=1e-5)
    assert tally.share(EVAL_TOP1) == pytest.approx(float(hits[:, 0].float().mean()))
    assert tally.share(EVAL_TOP5) == pytest.approx(float(hits.any(1).float().mean()))


@given(images=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_rows_of_weight_0_do_not_count_but_are_seen(images: int, seed: int) -> None:
    logits, label, weight = scores(images, 7, seed)
    kept = weight > 0
    tally = MetricSums.of(logits, label, weight)
    readable = MetricSums.of(logits[kept], label[kept], weight[kept])
    assert_close(tally.sums[:4], readable.sums[:4])
    assert (tally.images, tally.quarantined) == (images, images - int(kept.sum()))


@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 10**6))
def test_the_tallies_of_any_split_add_up_to_that_of_the_whole(cuts: list[int], seed: int) -> None:
    columns = scores(40, 9, seed)
    edges = [0, *sorted(cuts), 40]
    parts = MetricSums.zero()
    for start, end in pairwise(edges):
        parts += MetricSums.of(*(column[start:end] for column in columns))
    assert_close(parts.sums, MetricSums.of(*columns).sums, rtol=1e-6, atol=1e-6)


def test_with_fewer_than_five_classes_every_image_is_a_top5_hit() -> None:
    logits, label, _ = scores(10, 3, seed=1)
    assert MetricSums.of(logits, label, torch.ones(10)).share(EVAL_TOP5) == 1.0


def test_no_images_have_no_loss_and_no_hits() -> None:
    zero = MetricSums.zero()
    assert (
        zero.loss,
        zero.share(EVAL_TOP1),
        zero.share(EVAL_TOP5),
        zero.images,
        zero.quarantined,
    ) == (0, 0, 0, 0, 0)
    assert (
        MetricSums.of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0)).loss
        == 0
    )


def test_bfloat16_logits_are_judged_in_float32() -> None:
    logits, label, weight = scores(12, 6, seed=2)
    half = logits.bfloat16()
    assert_close(
        MetricSums.of(half, label, weight).sums, MetricSums.of(half.float(), label, weight).sums
    )


def test_sums_beyond_float32_stay_exact() -> None:
    many = MetricSums(torch.tensor([0, 0, 0, 2.0**24, 2.0**24, 0, 0], dtype=torch.float64))
    one = MetricSums.of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.ones(1))
    assert (many + one).images == 2**24 + 1


def test_one_process_is_the_sum_over_workers() -> None:
    tally = MetricSums.of(*scores(5, 4, seed=3))
    assert torch.equal(tally.over_workers().sums, tally.sums)


def test_a_worker_whose_group_is_gone_does_not_take_its_own_sums_for_all() -> None:
    """Ray Train destroys the process group of the workers that survive another one."""
    own = MetricSums.of(*scores(5, 4, seed=3))
    with worker_group(2), pytest.raises(ValueError, match="process group"):
        own.over_workers()


REPORT = EpochReport(
    epoch=0, step=10, train_loss=1.0, train_top1=0.5, train_images=10, eval_loss=1.0,
    eval_top1=0.5, eval_top5=0.9, eval_images=5, quarantined=0,
)  # fmt: skip


def epochs(*figures: tuple[float, float]) -> list[EpochReport]:
    return [
        replace(REPORT, epoch=epoch, eval_top1=top1, eval_loss=loss)
        for epoch, (top1, loss) in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("figures", "winner"),
    [
        ([(0.5, 1.0), (0.7, 9.0), (0.6, 0.1)], 1),  # top-1 first
        ([(0.7, 1.0), (0.7, 0.8), (0.6, 0.1)], 1),  # then the loss
        ([(0.1, 1.0), (0.7, 0.8), (0.7, 0.8)], 1),  # then the earliest
    ],
)
def test_best_is_the_highest_top1_then_the_lowest_loss_then_the_earliest(
    figures: list[tuple[float, float]], winner: int
) -> None:
    result = best(epochs(*figures))
    assert result and result.epoch == winner


def test_a_loss_that_is_no_number_is_the_highest() -> None:
    result = best(epochs((0.5, float("nan")), (0.5, 2.0)))
    assert result and result.eval_loss == 2.0
    sums = MetricSums.of(*scores(20, 8, seed=4)).sums
    finite = EvalResult(MetricSums(sums))
    nan = EvalResult(MetricSums(torch.cat([torch.tensor([torch.nan]), sums[1:]])))
    assert np.isnan(nan.sums.loss)
    assert best_result([nan, finite]) is best_result([finite, nan]) is finite


def test_without_epochs_there_is_no_best() -> None:
    assert best([]) is None


def test_a_report_divides_once_and_adds_up_what_could_not_be_read() -> None:
    train, evaluated = MetricSums.of(*scores(20, 8, seed=4)), MetricSums.of(*scores(9, 8, seed=5))
    report = epoch_report(2, 30, train, EvalResult(evaluated))
    assert (report.epoch, report.step) == (2, 30)
    assert (report.train_images, report.eval_images) == (20, 9)
    assert (report.train_loss, report.eval_top1) == (train.loss, evaluated.share(EVAL_TOP1))
    assert report.quarantined == train.quarantined + evaluated.quarantined


@pytest.mark.parametrize("score", [0.0, float("nan")])
def test_a_network_that_scores_all_classes_alike_is_not_right_about_all_images(
    score: float,
) -> None:
    logits, label = torch.full((10, 10), score), torch.arange(10)
    assert MetricSums.of(logits, label, torch.ones(10)).share(EVAL_TOP1) <= 0.1


@pytest.mark.parametrize("several", [False, True])
def test_the_figures_of_each_class_are_scikit_learns(several: bool) -> None:
    torch.manual_seed(7)
    logits, weight = torch.randn(60, 5), (torch.rand(60) < 0.9).float()
    label = torch.randint(0, 2, (60, 5)) if several else torch.randint(0, 4, (60,))
    counts = ClassCounts(5, logits.device)
    for part in (slice(0, 13), slice(13, 60)):
        counts.add(logits[part], label[part], weight[part])
    read, said = weight > 0, (logits >= 0).int() if several else logits.argmax(1)
    expected = precision_recall_fscore_support(
        label[read], said[read], labels=range(5), zero_division=0
    )
    result = counts.over_workers()
    figures = [[each.precision, each.recall, each.f1, each.support] for each in result]
    np.testing.assert_allclose(figures, np.array(expected).T)
