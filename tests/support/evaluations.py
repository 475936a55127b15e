"""Evaluations in tests: all metrics as a list, and a Ray that must not be joined."""

from typing import Any

from effnet_ray import Placement
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5


def everything(figures: MulticlassMetrics) -> list[Any]:
    return [
        figures.loss,
        figures.share(EVAL_TOP1),
        figures.share(EVAL_TOP5),
        figures.ece,
        figures.bins,
        figures.per_class,
        figures.confusion,
        figures.worst_mistakes,
        figures.label_errors,
        figures.label_error_count,
        figures.thresholds.tolist(),
        figures.unreadable,
        figures.images,
    ]


def no_ray(_: Placement) -> None:
    raise AssertionError("Ray was asked for")
