"""An evaluation as one HTML page: no scripts, nothing loaded from elsewhere.

Names of classes and files are anyone's: the template escapes them, and the page's own policy
forbids whatever else could run.
"""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import jinja2

from effnet_ray.inference import plots
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.train.class_metrics import ClassMetrics

CELLS = 16
"""Up to so many classes the confusion matrix is a table of numbers; beyond, a picture."""
CONFUSED = 15
"""Pairs of confused classes that are named."""
QUARANTINED = 200
"""Images that could not be read and are named."""


def html(found: Evaluation) -> bytes:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.2f}\u00a0%"
    figures, release = found.metrics, found.release
    several = isinstance(figures, MultilabelMetrics)
    told = _of_several(figures) if isinstance(figures, MultilabelMetrics) else _of_one(figures)
    page = environment.get_template("several.html.j2" if several else "one.html.j2").render(
        found=found,
        figures=figures,
        release=release,
        names=release.classes,
        present=figures.present,
        curves=plots.curves(release.history) if release.history else "",
        quarantined=list(figures.unreadable.items())[:QUARANTINED],
        recipe={
            name: value for name, value in asdict(release.recipe).items() if value is not None
        },
        facts=_facts(found),
        **told,
    )
    return page.encode()


def _source(name: str) -> str:
    """A template beside this file."""
    return files("effnet_ray.inference").joinpath(name).read_text()


def _of_one(figures: MulticlassMetrics) -> dict[str, Any]:
    """What the page has where every image has one class."""
    present = figures.present
    few = len(present) <= CELLS
    return {
        "cells": _cells(figures, present) if few else None,
        "picture": None if few else plots.matrix(figures, present),
        "confused": figures.confused_pairs[:CONFUSED],
        "reliability": plots.reliability(figures.bins),
    }


def _of_several(figures: MultilabelMetrics) -> dict[str, Any]:
    """What it has where an image may have several."""
    return {
        "worst": figures.worst_mistakes,
        "suspects": figures.label_errors,
        "reliability": plots.reliability(figures.bins, plots.OF_SEVERAL),
    }


def _cells(
    metrics: MulticlassMetrics, classes: Sequence[ClassMetrics]
) -> list[list[tuple[int, float, bool]]]:
    """(images, their share of the label's, right) of every pair, row by row."""
    return [
        [
            (
                count := metrics.confusion[row.index, column.index],
                count / max(1, row.support),
                column is row,
            )
            for column in classes
        ]
        for row in classes
    ]


def _facts(found: Evaluation) -> dict[str, Any]:
    """The data set and where the release comes from."""
    release, spec = found.release, found.release.spec
    trained_on = release.provenance.get("fingerprint")
    same = trained_on == found.manifest.fingerprint
    splits = ", ".join(f"{images:,} {split}" for split, images in found.manifest.images.items())
    facts = {
        "data": found.data,
        "images": splits,
        "fingerprint": found.manifest.fingerprint[:16],
        "trained on": "this data set" if same else f"another ({str(trained_on)[:16]})",
        "release": release.uri,
        "run": release.provenance.get("run"),
        "started from": release.provenance.get("weights"),
        "preprocessing": f"{spec.resolution}×{spec.resolution} px, {spec.interpolation}, "
        f"centre crop {spec.crop:g}, mean {_numbers(spec.mean)}, std {_numbers(spec.std)}",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _numbers(three: Sequence[float]) -> str:
    return " ".join(f"{each:g}" for each in three)
