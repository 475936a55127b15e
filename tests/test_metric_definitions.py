"""Metric definitions: keys are fields of what is stored, labels are what people read."""

from dataclasses import fields

import pytest

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.metric_definitions import (
    EPOCH_METRICS,
    EVAL_LOSS,
    EVAL_MAP,
    EVAL_METRICS,
    EVAL_TOP1,
    TEST_METRICS,
    TEST_SCORES,
    Score,
)


def test_keys_of_epoch_metrics_are_fields_of_the_report() -> None:
    assert {metric.key for metric in EPOCH_METRICS} <= {
        field.name for field in fields(EpochReport)
    }


def test_values_are_formatted_for_people() -> None:
    assert EVAL_TOP1.describe(0.9123) == "eval top-1 91.23%"
    assert EVAL_LOSS.describe(0.25) == "eval loss 0.2500"
    assert EVAL_MAP.name == "mAP" and EVAL_MAP.higher_is_better


def test_models_are_ranked_by_map_where_there_is_one() -> None:
    assert Score.of({"eval_top1": 0.5, "eval_map": 0.4}) == Score(EVAL_MAP, 0.4)
    assert Score.of({"eval_top1": 0.5, "eval_map": None}) == Score(EVAL_TOP1, 0.5)
    assert Score.of({"test_top1": 0.5}, TEST_SCORES) == Score(EVAL_TOP1.on("test"), 0.5)
    assert Score.of({}) is None


def test_keys_are_those_of_the_files() -> None:
    assert [metric.key for metric in EVAL_METRICS] == [
        "eval_map", "eval_top1", "eval_top5", "eval_loss",
    ]  # fmt: skip
    assert [metric.key for metric in TEST_METRICS] == [
        "test_map", "test_top1", "test_top5", "test_loss",
    ]  # fmt: skip
    assert EVAL_TOP1.on("test").label == "test top-1"


@pytest.mark.parametrize(
    ("share", "images", "low", "high"),
    [
        # scipy: binomtest(count, images).proportion_ci(method="wilson")
        (0.9, 10, 0.596, 0.982),
        (1.0, 25, 0.867, 1.0),
        (0.0, 25, 0.0, 0.133),
        (0.5, 10_000, 0.490, 0.510),
    ],
)
def test_intervals_are_wilsons(share: float, images: int, low: float, high: float) -> None:
    result = EVAL_TOP1.interval(share, images)
    assert result == pytest.approx((low, high), abs=1e-3)
    assert EVAL_TOP1.format(share, images).startswith(f"{share:.2%} (")


def test_what_is_no_share_of_images_has_no_interval() -> None:
    assert EVAL_LOSS.interval(0.5, 100) is None and EVAL_MAP.interval(0.5, 100) is None
    assert EVAL_TOP1.format(0.5, 0) == "50.00%"


@pytest.mark.parametrize("images", range(1, 400))
def test_an_interval_contains_its_value_at_both_ends(images: int) -> None:
    """Float noise would put a bound beside 0 or 1."""
    for right in {0, 1, images // 2, images - 1, images}:
        low, high = EVAL_TOP1.interval(right / images, images) or (2.0, -2.0)
        assert 0 <= low <= right / images <= high <= 1
