"""The progress of a sweep: a live table by variant; in a log, a line per trial that ends."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from effnet_ray.cli import terminal as terminals
from effnet_ray.cli.terminal import Terminal
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.sweep_record import Trial
from effnet_ray.train.metric_definitions import EVAL_TOP1

if TYPE_CHECKING:
    from effnet_ray.runtime.events import WaitingForWorkers
    from effnet_ray.sweep.trial_log import SweepProgress
    from effnet_ray.sweep.tune import SweepStarted

STATES = (
    sweep_record.RUNNING,
    sweep_record.FINISHED,
    sweep_record.STOPPED,
    sweep_record.FAILED,
    sweep_record.SKIPPED,
)
"""The states of trials, in the order of the table's columns."""


class SweepView:
    """Shows a sweep: a live table by variant; in a log, a line per finished trial."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._live = Live(console=terminal.console, transient=True, auto_refresh=False)
        self._plan: SweepStarted | None = None
        self._last_plain = time.monotonic()

    def __enter__(self) -> "SweepView":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_progress(self, event: "SweepStarted | SweepProgress | WaitingForWorkers") -> None:
        """Show the plan, a change of a trial, or what the sweep is waiting for."""
        from effnet_ray.sweep.trial_log import SweepProgress
        from effnet_ray.sweep.tune import SweepStarted

        if isinstance(event, SweepStarted):
            self._start(event)
        elif isinstance(event, SweepProgress):
            self._update(event)
        else:
            self._terminal.on_event(event)

    def _start(self, plan: "SweepStarted") -> None:
        self._plan = plan
        sweep, allocation = plan.sweep, plan.allocation
        workers = ", ".join(
            f"{name.upper()}: {allocation.placements[name].workers}" for name in sweep.variants
        )
        self._terminal.print(
            f"sweep {sweep.name}: {sweep.trials} trials, up to {allocation.concurrent} in "
            f"parallel; workers per trial: {workers}"
        )
        if plan.finished_before:
            self._terminal.print(
                f"{plan.finished_before} trials finished earlier and are not repeated"
            )
        if self._terminal.console.is_terminal:
            self._live.start()

    def _update(self, progress: "SweepProgress") -> None:
        trial = progress.trial
        if trial.over and trial.state != sweep_record.SKIPPED:
            self._terminal.print(_trial_line(trial))
        if self._live.is_started:
            self._live.update(self._view(progress), refresh=True)
        elif time.monotonic() - self._last_plain >= terminals.PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            self._terminal.print(f"{_state_counts(progress.trials)}; {self._status(progress)}")

    def _view(self, progress: "SweepProgress") -> Group:
        """A row per variant: trials by state, and the best score."""
        assert self._plan is not None
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("variant")
        for title in (*STATES, f"best {EVAL_TOP1.name}"):
            table.add_column(title, justify="right")
        for variant in self._plan.sweep.variants:
            trials = [trial for trial in progress.trials.values() if trial.variant == variant]
            counts = [str(sum(t.state == state for t in trials) or "") for state in STATES]
            best = max((trial.eval_top1 for trial in trials), default=0)
            table.add_row(variant.upper(), *counts, f"{best:.2%}" if best else "")
        return Group(table, Text(self._status(progress)))

    def _status(self, progress: "SweepProgress") -> str:
        """The best trial so far, the device-seconds used, and the longest time remaining."""
        assert self._plan is not None
        parts = []
        best = max(progress.trials.values(), key=lambda trial: trial.eval_top1)
        if best.curve:
            name = f"trial {best.number}, {best.variant.upper()}"
            parts.append(f"best {best.eval_top1:.2%} ({name})")
        budget = self._plan.sweep.budget
        limit = f" of {budget:,.0f}" if budget else ""
        parts.append(f"used {progress.spent:,.0f}{limit} device-seconds")
        if progress.spent:
            remaining = min(progress.remaining, (budget or float("inf")) - progress.spent)
            seconds = round(max(0, remaining) / self._plan.allocation.devices)
            parts.append(f"at most {timedelta(seconds=seconds)} left")
        return "; ".join(parts)


def _trial_line(trial: Trial) -> str:
    name = f"trial {trial.number:>3}  {trial.variant.upper()}"
    if trial.state == sweep_record.FAILED:
        return f"{name}  failed: {trial.reason}"
    progress = "" if trial.state == sweep_record.FINISHED else f" at {trial.progress:.0%}"
    settings = "  ".join(
        f"{field} {value:.3g}" if isinstance(value, float) else f"{field} {value}"
        for field, value in trial.settings.items()
    )
    top1 = EVAL_TOP1.describe(trial.eval_top1)
    seconds = f"{trial.device_seconds:,.0f} device-s"
    return f"{name}  {trial.state}{progress}  {top1}  {seconds}  {settings}"


def _state_counts(trials: Mapping[int, Trial]) -> str:
    states = [trial.state for trial in trials.values()]
    return ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
