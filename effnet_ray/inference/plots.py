"""The plots of an evaluation's page, as SVG whose ink is the page's own, in light and in dark."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from effnet_ray.inference.metric_sums import BINS, Bin
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.train.class_metrics import ClassMetrics
from effnet_ray.train.epoch_report import EpochReport

INK = "#010203"
"""Drawn with, and replaced by the page's colour of text."""
BLUE, ORANGE = "#3b8fd4", "#e8832a"
"""Told apart by the colour-blind, and on white as on black."""
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, and weighs less
    "svg.hashsalt": "effnet_ray",
    "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
DPI = 120
WIDTH, HEIGHT = 4.4, 3.0
"""Inches: on a phone of 360 px as large as it is drawn."""


def _svg(figure: Figure, told: str) -> str:
    """`told` is what the picture says, for those who cannot see it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{told}"', 1)


def curves(history: Sequence[EpochReport]) -> str:
    """Loss, and top-1 or mean average precision, of train and eval split, epoch by epoch."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.6 * HEIGHT), layout="constrained")
        name = _curves(figure.subplots(2, sharex=True), history)
        return _svg(figure, f"Loss and {name} of each epoch of the training")


def picture(history: Sequence[EpochReport]) -> bytes:
    """The same side by side, as a PNG on white, for a page that is not ours."""
    sink = io.BytesIO()
    with rc_context(STYLE | dict.fromkeys(INKED, "black")):
        figure = Figure(figsize=(1.6 * WIDTH, HEIGHT), layout="constrained", dpi=DPI)
        axes = figure.subplots(1, 2)
        _curves(axes, history)
        axes[0].set_xlabel("epoch")
        figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def _curves(axes: Sequence[Axes], history: Sequence[EpochReport]) -> str:
    """Draw both; the name of the score."""
    several = any(each.eval_map is not None for each in history)
    figure, name = ("map", "mAP") if several else ("top1", "top-1")
    loss, score = axes
    _curve(loss, history, "loss", 1)
    _curve(score, history, figure, 100)
    loss.set_ylabel("loss, nats")
    loss.legend(frameon=False)
    score.set(ylabel=f"{name}, %", xlabel="epoch")
    for each in axes:
        each.locator_params(axis="x", integer=True)
    return name


def _curve(axes: Axes, history: Sequence[EpochReport], figure: str, scale: float) -> None:
    """Epochs from 1, as people see them in a run's log; mAP is of the eval split alone."""
    for split, colour, line in (("train", BLUE, "--"), ("eval", ORANGE, "-")):
        name = f"{split}_{figure}"
        found = [(each.epoch + 1, getattr(each, name, None)) for each in history]
        points = [(epoch, scale * value) for epoch, value in found if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=".", label=split)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reliability diagram is of."""

    probability: str
    true: str
    counted: str


OF_ONE = Asked("confidence", "top-1", "images")
OF_SEVERAL = Asked("probability of a class", "share that are of it", "decisions")


def reliability(bins: Sequence[Bin], asked: Asked = OF_ONE) -> str:
    """True ones over probability: on the diagonal where the network is as sure as it may be.

    Source: Guo et al. 2017, fig. 1. The grey bars are the share of each bin.
    """
    total = max(1, sum(one.count for one in bins))
    filled = [one for one in bins if one.count]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        middles = [(one.low + one.high) / 2 for one in bins]
        axes.bar(middles, [one.count / total for one in bins], 1 / BINS, color=INK, alpha=0.13,
                 label=f"share of {asked.counted}")  # fmt: skip
        axes.plot([0, 1], [0, 1], "--", color=INK, lw=0.8, alpha=0.6)
        axes.plot([one.probability for one in filled], [one.true for one in filled], "o-",
                  color=BLUE, ms=4, label=asked.true)  # fmt: skip
        axes.set(xlabel=asked.probability, ylabel=asked.true, xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return _svg(figure, f"{asked.true.capitalize()} of the {asked.counted} in each of "
                    f"{BINS} bins of {asked.probability}")  # fmt: skip


def matrix(figures: MulticlassMetrics, classes: Sequence[ClassMetrics]) -> str:
    """The confusion matrix of so many classes that numbers could not be read: a PNG as base64.

    A pixel a cell: right ones blue, wrong ones orange, the stronger the larger the share of the
    label's images (its root, so that single mistakes are seen).
    """
    place = {one.index: at for at, one in enumerate(classes)}
    pixels = np.zeros((len(classes), len(classes), 4), np.uint8)
    for (label, predicted), images in figures.confusion.items():
        cell: Any = pixels[place[label], place[predicted]]
        colour = BLUE if label == predicted else ORANGE
        cell[:3] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        cell[3] = round(255 * (images / figures.per_class[label].support) ** 0.5)
    sink = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(sink, "PNG")
    return base64.b64encode(sink.getvalue()).decode()
