"""The HTML page of a sweep: leaderboard, learning curves, Pareto front and compute."""

from matplotlib.axes import Axes

from effnet_ray.reporting.page import render
from effnet_ray.reporting.svg import INK, new_figure, plot_style, to_svg
from effnet_ray.sweep import results, sweep_record
from effnet_ray.sweep.asha import RUNG
from effnet_ray.sweep.results import Outcome
from effnet_ray.train.metric_definitions import EVAL_TOP1

COLOURS = ("#1b6ca8", "#e07a1f", "#2f9e44", "#c2255c", "#7048e8", "#0c8599", "#a07d00", "#868e96")
"""One per variant: distinguishable with colour blindness, on white and on black."""
LINE_STYLES = ("-", "--", ":")
"""Of learning curves: the second for variants from the ninth on, which repeat the colours."""
END_MARKERS = {
    sweep_record.FINISHED: "o",
    sweep_record.STOPPED: "x",
    sweep_record.FAILED: "X",
    sweep_record.RUNNING: ".",
}
"""Marker at the end of a trial's curve, by its state."""
WIDTH, HEIGHT = 5.4, 3.4
"""Inches."""


def html(outcome: Outcome) -> bytes:
    """The page."""
    with plot_style():
        plots = {
            "learning_curves": _learning_curves(outcome),
            "pareto_front": _pareto_front(outcome),
            "compute": _compute(outcome),
        }
    return render(
        "sweep/report.html.j2",
        outcome=outcome,
        sweep=outcome.sweep,
        top1=EVAL_TOP1,
        pareto=[row.trial.number for row in outcome.pareto],
        costs={row.trial.number: row.cost for row in outcome.board},
        trials=sorted(outcome.trials, key=lambda t: (-t.progress, -t.eval_top1, t.number)),
        hyperparameters=list(outcome.sweep.space),
        state_counts=results.counts(outcome.trials),
        spent=sum(trial.device_seconds for trial in outcome.trials),
        saved=results.seconds_saved(outcome.trials),
        **plots,
    )


def _colour(outcome: Outcome, variant: str) -> str:
    return COLOURS[outcome.sweep.variants.index(variant) % len(COLOURS)]


def _line_style(outcome: Outcome, variant: str) -> str:
    return LINE_STYLES[outcome.sweep.variants.index(variant) // len(COLOURS)]


def _learning_curves(outcome: Outcome) -> str:
    """Eval top-1 over the fraction of a trial's epochs, and how each trial ended."""
    figure = new_figure(HEIGHT, WIDTH)
    axes = figure.add_subplot()
    variants_in_legend: set[str] = set()
    for trial in outcome.trials:
        if not trial.curve:
            continue
        label = None if trial.variant in variants_in_legend else trial.variant.upper()
        variants_in_legend.add(trial.variant)
        progress = [100 * point.reached for point in trial.curve]
        top1 = [100 * point.eval_top1 for point in trial.curve]
        colour = _colour(outcome, trial.variant)
        style = _line_style(outcome, trial.variant)
        axes.plot(progress, top1, color=colour, ls=style, lw=1.2, alpha=0.8, label=label)
        marker = END_MARKERS.get(trial.state, ".")
        axes.plot(progress[-1], top1[-1], marker, color=colour, ms=5)
    axes.axvline(100 * RUNG, color=INK, alpha=0.5, lw=0.8, ls=":")
    axes.set(xlabel="% of the trial's epochs", ylabel=f"{EVAL_TOP1.label}, %")
    axes.set_xlim(0, 104)
    axes.legend(frameon=False)
    return to_svg(figure, "Eval top-1 of each trial over its epochs")


def _pareto_front(outcome: Outcome) -> str:
    """Eval top-1 of every finished trial over its multiply-adds, and the Pareto front."""
    figure = new_figure(HEIGHT, WIDTH)
    axes = figure.add_subplot()
    for row in outcome.board:
        colour = _colour(outcome, row.trial.variant)
        top1 = row.trial.eval_top1
        low, high = EVAL_TOP1.interval(top1, outcome.eval_images) or (top1, top1)
        bar = [[100 * (top1 - low)], [100 * (high - top1)]]
        axes.errorbar(
            row.cost.gmacs, 100 * top1, bar, fmt="o", color=colour, alpha=0.7, elinewidth=0.8
        )
    front = [(row.cost.gmacs, 100 * row.trial.eval_top1) for row in outcome.pareto]
    axes.plot(*zip(*front, strict=True), color=INK, alpha=0.7, lw=1, zorder=0)
    for row, point in zip(outcome.pareto, front, strict=True):
        _annotate(axes, f"{row.trial.variant.upper()} #{row.trial.number}", point)
    axes.set(
        xscale="log", xlabel="multiply-adds per image, billions", ylabel=f"{EVAL_TOP1.label}, %"
    )
    axes.minorticks_off()
    ticks = sorted({row.cost.gmacs for row in outcome.board})
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    return to_svg(figure, "Eval top-1 of finished trials over multiply-adds per image")


def _annotate(axes: Axes, text: str, point: tuple[float, float]) -> None:
    axes.annotate(text, point, xytext=(4, 5), textcoords="offset points", fontsize=9)


def _compute(outcome: Outcome) -> str:
    """Device-seconds of each variant: spent, and saved by early stopping."""
    figure = new_figure(HEIGHT, WIDTH)
    axes = figure.add_subplot()
    trials = {
        variant: [trial for trial in outcome.trials if trial.variant == variant]
        for variant in outcome.sweep.variants
    }
    trials = {variant: tried for variant, tried in trials.items() if tried}
    names = [variant.upper() for variant in trials]
    spent = [sum(trial.device_seconds for trial in tried) for tried in trials.values()]
    saved = [results.seconds_saved(tried) for tried in trials.values()]
    colours = [_colour(outcome, variant) for variant in trials]
    axes.bar(names, spent, color=colours, label="spent")
    label = "saved by early stopping"
    axes.bar(names, saved, bottom=spent, color="none", edgecolor=INK, ls="--", label=label)
    axes.set(ylabel="device-seconds")
    axes.legend(frameon=False)
    return to_svg(figure, "Device-seconds spent and saved by each variant")
