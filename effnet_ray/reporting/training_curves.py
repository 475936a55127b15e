"""Plots of a training run: loss and score of the train and eval split, epoch by epoch."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes

from effnet_ray.reporting.svg import BLUE, HEIGHT, ORANGE, WIDTH, new_figure, plot_style, to_svg
from effnet_ray.train.epoch_report import EpochReport

PNG_DPI = 120


def training_curves_svg(history: Sequence[EpochReport]) -> str:
    """Loss above top-1 or mean average precision, as SVG for a page."""
    with plot_style():
        figure = new_figure(1.6 * HEIGHT)
        score = _plot(figure.subplots(2, sharex=True), history)
        return to_svg(figure, f"Loss and {score} of each epoch")


def training_curves_png(history: Sequence[EpochReport]) -> bytes:
    """The same plots side by side, as a PNG on white for a model card."""
    file = io.BytesIO()
    with plot_style(ink="black"):
        figure = new_figure(width=1.6 * WIDTH, dpi=PNG_DPI)
        axes = figure.subplots(1, 2)
        _plot(axes, history)
        axes[0].set_xlabel("epoch")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _plot(axes: Sequence[Axes], history: Sequence[EpochReport]) -> str:
    """Draw loss and score; return the score's name."""
    multilabel = any(report.eval_map is not None for report in history)
    metric, name = ("map", "mAP") if multilabel else ("top1", "top-1")
    loss, score = axes
    _plot_metric(loss, history, "loss", scale=1)
    _plot_metric(score, history, metric, scale=100)
    loss.set_ylabel("loss, nats")
    loss.legend(frameon=False)
    score.set(ylabel=f"{name}, %", xlabel="epoch")
    for axis in axes:
        axis.locator_params(axis="x", integer=True)
    return name


def _plot_metric(axes: Axes, history: Sequence[EpochReport], metric: str, scale: float) -> None:
    """Draw one metric of both splits; only the eval split has mAP. Epochs count from 1."""
    for split, colour, line in (("train", BLUE, "--"), ("eval", ORANGE, "-")):
        values = [
            (report.epoch + 1, getattr(report, f"{split}_{metric}", None)) for report in history
        ]
        points = [(epoch, scale * value) for epoch, value in values if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=".", label=split)
