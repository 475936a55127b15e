"""The plots of an evaluation's page: reliability diagram and confusion matrix."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from effnet_ray.inference.metric_sums import BINS, Bin
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.reporting.svg import BLUE, INK, ORANGE, new_figure, plot_style, to_svg
from effnet_ray.train.class_metrics import ClassMetrics

SCORE_BINS = 40
"""Bars of a histogram of unknown scores."""


@dataclass(frozen=True, slots=True)
class DiagramLabels:
    """The texts of a reliability diagram."""

    probability: str
    """Label of the x axis."""
    accuracy: str
    """Label of the y axis."""
    counted: str
    """What the bars count."""


MULTICLASS_LABELS = DiagramLabels("confidence", "top-1 accuracy", "images")
MULTILABEL_LABELS = DiagramLabels("probability of a class", "share with this label", "decisions")


def reliability_diagram(bins: Sequence[Bin], labels: DiagramLabels = MULTICLASS_LABELS) -> str:
    """Accuracy over predicted probability, as SVG; a calibrated model lies on the diagonal.

    Source: Guo et al. 2017, fig. 1. The grey bars are each bin's share of all predictions.
    """
    total = max(1, sum(bin_.count for bin_ in bins))
    filled = [bin_ for bin_ in bins if bin_.count]
    with plot_style():
        figure = new_figure()
        axes = figure.add_subplot()
        axes.bar(
            [(bin_.low + bin_.high) / 2 for bin_ in bins],
            [bin_.count / total for bin_ in bins],
            1 / BINS,
            color=INK,
            alpha=0.13,
            label=f"share of {labels.counted}",
        )
        axes.plot([0, 1], [0, 1], "--", color=INK, lw=0.8, alpha=0.6)
        axes.plot(
            [bin_.probability for bin_ in filled],
            [bin_.accuracy for bin_ in filled],
            "o-",
            color=BLUE,
            ms=4,
            label=labels.accuracy,
        )
        axes.set(xlabel=labels.probability, ylabel=labels.accuracy, xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        description = f"{labels.accuracy} in {BINS} bins of {labels.probability}"
        return to_svg(figure, description)


def unknown_histogram(
    evaluated: npt.NDArray[Any], unknown: npt.NDArray[Any] | None, threshold: float
) -> str:
    """The shares of images by how unlike the release's images they are, as SVG.

    `evaluated` [n] and `unknown` [m]: scores of evaluated images, and of unknown pictures if there
    were any. The line is where a picture is called unknown.
    """
    groups = [("images of this split", evaluated, BLUE)]
    if unknown is not None:
        groups.append(("unknown pictures", unknown, ORANGE))
    highest = max(threshold, *(float(scores.max()) for _, scores, _ in groups))
    with plot_style():
        figure = new_figure()
        axes = figure.add_subplot()
        for name, scores, colour in groups:
            weights = np.full(len(scores), 1 / len(scores))
            axes.hist(
                scores,
                bins=SCORE_BINS,
                range=(0, highest),
                weights=weights,
                color=colour,
                alpha=0.55,
                label=name,
            )
        axes.axvline(threshold, color=INK, lw=0.8, ls="--", label="called unknown from here")
        axes.set(xlabel="unknown score", ylabel="share of images")
        axes.legend(frameon=False, loc="upper right")
        return to_svg(figure, "histogram of unknown scores")


def confusion_picture(metrics: MulticlassMetrics, classes: Sequence[ClassMetrics]) -> str:
    """The confusion matrix as a picture of one pixel per cell: a PNG as base64.

    Used when there are too many classes for readable numbers. Correct cells are blue, wrong ones
    orange; opacity is the root of the share of the label's images, so that single mistakes show.
    """
    position = {row.index: at for at, row in enumerate(classes)}
    pixels = np.zeros((len(classes), len(classes), 4), np.uint8)
    for (label, predicted), count in metrics.confusion.items():
        cell: Any = pixels[position[label], position[predicted]]
        colour = BLUE if label == predicted else ORANGE
        cell[:3] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        cell[3] = round(255 * (count / metrics.per_class[label].support) ** 0.5)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
