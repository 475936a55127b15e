"""A sweep as one HTML page: outcome, learning curves, Pareto front, compute spent."""

import io
from collections.abc import Callable
from importlib.resources import files

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effnet_ray.sweep import results, sweep_record
from effnet_ray.sweep.asha import RUNGS
from effnet_ray.sweep.results import Outcome

COLOURS = ("#1b6ca8", "#e07a1f", "#2f9e44", "#c2255c", "#7048e8", "#0c8599", "#a07d00", "#5c5f66")
"""One per variant; distinguishable for colour-blind readers, and labelled as well."""
END_MARKERS = {
    sweep_record.FINISHED: "o",
    sweep_record.STOPPED: "x",
    sweep_record.FAILED: "X",
    sweep_record.RUNNING: ".",
}
"""State → marker at the end of a trial's curve."""


def html(outcome: Outcome) -> bytes:
    """The page: self-contained, without scripts."""
    source = files("effnet_ray.sweep").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(source).render(
        outcome=outcome,
        sweep=outcome.sweep,
        pareto=[row.trial.number for row in outcome.pareto],
        cost={row.trial.number: row.cost for row in outcome.board},
        trials=sorted(outcome.trials, key=lambda t: (-t.progress, -t.eval_top1, t.number)),
        fields=list(outcome.sweep.space),
        counts=results.counts(outcome.trials),
        spent=sum(trial.device_seconds for trial in outcome.trials),
        saved=results.seconds_saved(outcome.trials),
        curves=_svg(outcome, _curves),
        front=_svg(outcome, _front),
        compute=_svg(outcome, _compute),
    )
    return page.encode()


def _svg(outcome: Outcome, draw: Callable[[Outcome, Axes], None]) -> str:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(outcome, axes)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _colour(outcome: Outcome, variant: str) -> str:
    return COLOURS[outcome.sweep.variants.index(variant) % len(COLOURS)]


def _curves(outcome: Outcome, axes: Axes) -> None:
    """Plot eval top-1 over each trial's progress, and how each trial ended."""
    labelled: set[str] = set()
    for trial in outcome.trials:
        if not trial.curve:
            continue
        new = trial.variant not in labelled
        labelled.add(trial.variant)
        progress = [100 * point.reached for point in trial.curve]
        top1 = [100 * point.eval_top1 for point in trial.curve]
        colour = _colour(outcome, trial.variant)
        label = trial.variant.upper() if new else None
        axes.plot(progress, top1, color=colour, lw=1.2, alpha=0.8, label=label)
        axes.plot(progress[-1], top1[-1], END_MARKERS.get(trial.state, "."), color=colour, ms=5)
    for rung in RUNGS:
        axes.axvline(100 * rung, color="#868e96", lw=0.8, ls=":")
    axes.set(xlabel="% of the trial's epochs (dotted: rungs)", ylabel="eval top-1, %")
    axes.set_xlim(0, 104)
    axes.legend(frameon=False)


def _front(outcome: Outcome, axes: Axes) -> None:
    """Plot every finished model by its cost; the line is the Pareto front."""
    for row in outcome.board:
        colour = _colour(outcome, row.trial.variant)
        axes.plot(row.cost.gmacs, 100 * row.trial.eval_top1, "o", color=colour, alpha=0.7)
    costs = [row.cost.gmacs for row in outcome.pareto]
    top1 = [100 * row.trial.eval_top1 for row in outcome.pareto]
    axes.plot(costs, top1, color="#495057", lw=1, zorder=0)
    for row, cost, value in zip(outcome.pareto, costs, top1, strict=True):
        axes.annotate(
            f"{row.trial.variant.upper()} #{row.trial.number}",
            (cost, value),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set(xscale="log", xlabel="GMACs per image", ylabel="eval top-1, %")
    axes.minorticks_off()
    ticks = sorted({row.cost.gmacs for row in outcome.board})
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])


def _compute(outcome: Outcome, axes: Axes) -> None:
    """Plot each variant's device-seconds, spent and saved by early stopping."""
    variants = [v for v in outcome.sweep.variants if any(t.variant == v for t in outcome.trials)]
    trials = {v: [trial for trial in outcome.trials if trial.variant == v] for v in variants}
    spent = [sum(trial.device_seconds for trial in trials[v]) for v in variants]
    saved = [results.seconds_saved(trials[v]) for v in variants]
    names = [variant.upper() for variant in variants]
    axes.bar(names, spent, color=[_colour(outcome, v) for v in variants], label="spent")
    label = "saved by early stopping"
    axes.bar(names, saved, bottom=spent, color="none", edgecolor="#868e96", ls="--", label=label)
    axes.set(ylabel="device-seconds")
    axes.legend(frameon=False)
