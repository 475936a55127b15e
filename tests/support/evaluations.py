"""Evaluations in tests: all metrics as a list, and a Ray that must not be joined."""

from typing import Any

from effnet_ray import Placement
from effnet_ray.inference.multiclass import MulticlassMetrics


def everything(figures: MulticlassMetrics) -> list[Any]:
    return [
        figures.loss,
        figures.top1,
        figures.top5,
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
