"""The sweep as one HTML page: what was found, the curves, the Pareto front, what was spent."""

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
"""One a variant; told apart also by the colour-blind, and labelled besides."""
ENDS = {
    sweep_record.FINISHED: "o",
    sweep_record.STOPPED: "x",
    sweep_record.FAILED: "X",
    sweep_record.RUNNING: ".",
}
"""Marker at the end of a trial's curve, by its state."""


def html(found: Outcome) -> bytes:
    """The page: no scripts, nothing loaded from elsewhere."""
    source = files("effnet_ray.sweep").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(source).render(
        found=found,
        sweep=found.sweep,
        pareto=[entry.trial.number for entry in found.pareto],
        cost={entry.trial.number: entry.cost for entry in found.board},
        trials=sorted(found.trials, key=lambda t: (-t.reached, -t.eval_top1, t.number)),
        fields=list(found.sweep.space),
        counts=results.counts(found.trials),
        spent=sum(trial.device_seconds for trial in found.trials),
        saved=results.seconds_saved(found.trials),
        curves=_svg(found, _curves),
        front=_svg(found, _front),
        money=_svg(found, _money),
    )
    return page.encode()


def _svg(found: Outcome, draw: Callable[[Outcome, Axes], None]) -> str:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(found, axes)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _colour(found: Outcome, variant: str) -> str:
    return COLOURS[found.sweep.variants.index(variant) % len(COLOURS)]


def _curves(found: Outcome, axes: Axes) -> None:
    """Eval top-1 over the share of a trial's epochs, and how each trial ended."""
    labelled: set[str] = set()
    for trial in found.trials:
        if not trial.curve:
            continue
        new = trial.variant not in labelled
        labelled.add(trial.variant)
        reached = [100 * point.reached for point in trial.curve]
        top1 = [100 * point.eval_top1 for point in trial.curve]
        colour = _colour(found, trial.variant)
        axes.plot(reached, top1, color=colour, lw=1.2, alpha=0.8,
                  label=trial.variant.upper() if new else None)  # fmt: skip
        axes.plot(reached[-1], top1[-1], ENDS.get(trial.state, "."), color=colour, ms=5)
    for rung in RUNGS:
        axes.axvline(100 * rung, color="#868e96", lw=0.8, ls=":")
    axes.set(xlabel="% of the trial's epochs (dotted: rungs)", ylabel="eval top-1, %")
    axes.set_xlim(0, 104)
    axes.legend(frameon=False)


def _front(found: Outcome, axes: Axes) -> None:
    """Every finished model by its cost; the line joins those that none equals for less."""
    for entry in found.board:
        colour = _colour(found, entry.trial.variant)
        axes.plot(entry.cost.gmacs, 100 * entry.trial.eval_top1, "o", color=colour, alpha=0.7)
    costs = [entry.cost.gmacs for entry in found.pareto]
    top1 = [100 * entry.trial.eval_top1 for entry in found.pareto]
    axes.plot(costs, top1, color="#495057", lw=1, zorder=0)
    for entry, cost, value in zip(found.pareto, costs, top1, strict=True):
        axes.annotate(f"{entry.trial.variant.upper()} #{entry.trial.number}", (cost, value),
                      xytext=(4, 5), textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set(xscale="log", xlabel="G multiply-adds an image", ylabel="eval top-1, %")
    axes.minorticks_off()
    ticks = sorted({entry.cost.gmacs for entry in found.board})
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])


def _money(found: Outcome, axes: Axes) -> None:
    """Device-seconds of each variant: spent, and saved by stopping early."""
    variants = [v for v in found.sweep.variants if any(t.variant == v for t in found.trials)]
    own = {v: [trial for trial in found.trials if trial.variant == v] for v in variants}
    spent = [sum(trial.device_seconds for trial in own[v]) for v in variants]
    saved = [results.seconds_saved(own[v]) for v in variants]
    names = [variant.upper() for variant in variants]
    axes.bar(names, spent, color=[_colour(found, v) for v in variants], label="spent")
    axes.bar(names, saved, bottom=spent, color="none", edgecolor="#868e96", ls="--",
             label="saved by stopping early")  # fmt: skip
    axes.set(ylabel="device-seconds")
    axes.legend(frameon=False)
