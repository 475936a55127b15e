"""Plots of a training run: loss and score of the train and eval split, epoch by epoch."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes

from effnet_ray.reporting.svg import BLUE, HEIGHT, ORANGE, WIDTH, new_figure, plot_style, to_svg
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.metric_definitions import EVAL_LOSS, EVAL_SCORES, EVAL_TOP1, Metric

PNG_DPI = 120
"""The picture is 845 px wide: about the text of a model card. Chosen by eye."""


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
    ranked_by = {report.ranking_metric for report in history} or {EVAL_TOP1}
    metric = next(metric for metric in EVAL_SCORES if metric in ranked_by)
    loss, score = axes
    _plot_metric(loss, history, EVAL_LOSS, scale=1)
    _plot_metric(score, history, metric, scale=100)
    loss.set_ylabel("loss, nats")
    loss.legend(frameon=False)
    score.set(ylabel=f"{metric.name}, %", xlabel="epoch")
    for axis in axes:
        axis.locator_params(axis="x", integer=True)
    return metric.name


def _plot_metric(axes: Axes, history: Sequence[EpochReport], metric: Metric, scale: float) -> None:
    """Draw one metric of both splits; only the eval split has mAP. Epochs count from 1."""
    for split, colour, line in (("train", BLUE, "--"), ("eval", ORANGE, "-")):
        values = [
            (report.epoch + 1, getattr(report, metric.on(split).key, None)) for report in history
        ]
        points = [(epoch, scale * value) for epoch, value in values if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=".", label=split)
