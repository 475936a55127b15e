"""The HTML page of an evaluation."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from effnet_ray.inference import plots
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.groups import GroupScores
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.inference.unknown_pictures import UnknownPictures
from effnet_ray.reporting.page import render
from effnet_ray.reporting.training_curves import training_curves_svg
from effnet_ray.train.class_metrics import ClassMetrics

MAX_TABLE_CLASSES = 16
"""Classes up to which the confusion matrix is a table of numbers; with more it is a picture."""
MAX_CONFUSED_PAIRS = 15
"""Pairs of classes that are listed, the most confused first: about one screen."""
MAX_GROUPS = 20
"""Groups of images that are listed, the worst first."""
MAX_UNREADABLE = 200
"""Unreadable images that are listed."""


def html(
    evaluation: Evaluation,
    unknown: UnknownPictures | None = None,
    groups: GroupScores | None = None,
) -> bytes:
    """The page: metrics, plots, worst mistakes and suspected label errors.

    `unknown`: pictures of nothing that the release knows, if there were any; `groups`: top-1 of
    groups of images.
    """
    metrics, release = evaluation.metrics, evaluation.release
    if isinstance(metrics, MultilabelMetrics):
        template, details = "inference/multilabel.html.j2", _multilabel_details(metrics)
    else:
        template, details = "inference/multiclass.html.j2", _multiclass_details(metrics)
    return render(
        template,
        evaluation=evaluation,
        metrics=metrics,
        release=release,
        names=release.classes,
        present=metrics.present,
        training_curves=training_curves_svg(release.history) if release.history else "",
        unreadable=list(metrics.unreadable.items())[:MAX_UNREADABLE],
        recipe={
            name: value for name, value in asdict(release.recipe).items() if value is not None
        },
        facts=_facts(evaluation),
        unknown=unknown,
        groups=groups,
        worst_groups=groups.scores[:MAX_GROUPS] if groups else (),
        unknown_diagram=_unknown_diagram(evaluation, unknown),
        **details,
    )


def _unknown_diagram(evaluation: Evaluation, unknown: UnknownPictures | None) -> str:
    """The scores of known images and unknown pictures, as SVG; empty without references."""
    references, scores = evaluation.release.references, evaluation.metrics.unknown_scores
    if references is None or not len(scores):
        return ""
    return plots.unknown_histogram(
        scores, unknown.scores if unknown else None, references.threshold
    )


def _multiclass_details(metrics: MulticlassMetrics) -> dict[str, Any]:
    present = metrics.present
    as_table = len(present) <= MAX_TABLE_CLASSES
    return {
        "confusion_cells": _confusion_cells(metrics, present) if as_table else None,
        "confusion_picture": None if as_table else plots.confusion_picture(metrics, present),
        "confused_pairs": metrics.confused_pairs[:MAX_CONFUSED_PAIRS],
        "reliability_diagram": plots.reliability_diagram(metrics.bins),
    }


def _multilabel_details(metrics: MultilabelMetrics) -> dict[str, Any]:
    return {
        "label_errors": metrics.label_errors,
        "reliability_diagram": plots.reliability_diagram(metrics.bins, plots.MULTILABEL_LABELS),
    }


def _confusion_cells(
    metrics: MulticlassMetrics, classes: Sequence[ClassMetrics]
) -> list[list[tuple[int, float, bool]]]:
    """(images, share of the label's images, whether correct) of each cell, row by row."""
    cells = []
    for row in classes:
        counts = [metrics.confusion[row.index, column.index] for column in classes]
        support = max(1, row.support)
        cells.append(
            [
                (count, count / support, column is row)
                for column, count in zip(classes, counts, strict=True)
            ]
        )
    return cells


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    """The data set, and how the release was made."""
    release, spec, manifest = evaluation.release, evaluation.release.spec, evaluation.manifest
    trained_on = release.provenance.get("fingerprint")
    same = trained_on == manifest.fingerprint
    splits = ", ".join(f"{images:,} {split}" for split, images in manifest.images.items())
    facts = {
        "data": evaluation.data,
        "images": splits,
        "fingerprint": manifest.fingerprint[:16],
        "trained on": "this data set" if same else f"another ({str(trained_on)[:16]})",
        "release": release.uri,
        "run": release.provenance.get("run"),
        "started from": release.provenance.get("weights"),
        "preprocessing": f"{spec.resolution}×{spec.resolution} px, {spec.interpolation}, "
        f"{spec.crop_description}, mean {_format_rgb(spec.mean)}, std {_format_rgb(spec.std)}",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _format_rgb(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
