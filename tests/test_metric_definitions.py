"""Metric definitions: keys are fields of what is stored, labels are what people read."""

from dataclasses import fields

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.metric_definitions import (
    EPOCH_METRICS,
    EVAL_LOSS,
    EVAL_MAP,
    EVAL_TOP1,
    TEST_SCORES,
    TEST_TOP1,
    ranking_metric,
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
    assert ranking_metric({"eval_top1": 0.5, "eval_map": 0.4}) == EVAL_MAP
    assert ranking_metric({"eval_top1": 0.5, "eval_map": None}) == EVAL_TOP1
    assert ranking_metric({"test_top1": 0.5}, TEST_SCORES) == TEST_TOP1
    assert ranking_metric({}) is None
