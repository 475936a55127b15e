"""A sweep while it goes: a live table by variant; in a log, a line for every trial that ends."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from effnet_ray.cli import terminal as peoples
from effnet_ray.cli.terminal import Terminal
from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.sweep_record import Trial
from effnet_ray.sweep.trial_log import SweepProgress
from effnet_ray.sweep.tune import SweepStarted

STATES = (
    sweep_record.RUNNING,
    sweep_record.FINISHED,
    sweep_record.STOPPED,
    sweep_record.FAILED,
    sweep_record.SKIPPED,
)


class SweepView:
    """Hears a sweep. Use as a context."""

    def __init__(self, people: Terminal) -> None:
        self._people = people
        self._live = Live(console=people.console, transient=True, auto_refresh=False)
        self._plan: SweepStarted | None = None
        self._last_plain = time.monotonic()

    def __enter__(self) -> "SweepView":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_progress(self, event: SweepStarted | SweepProgress | WaitingForWorkers) -> None:
        """The plan, what has become of a trial, or what is waited for."""
        if isinstance(event, SweepStarted):
            self._begin(event)
            return
        if isinstance(event, WaitingForWorkers):
            self._people.hear(event)
            return
        assert self._plan is not None
        if event.trial.over and event.trial.state != sweep_record.SKIPPED:
            self._people.say(_ending(event.trial))
        if self._live.is_started:
            self._live.update(self._view(event), refresh=True)
        elif time.monotonic() - self._last_plain >= peoples.PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            self._people.say(f"{_states(event.trials)}; {self._figures(event)}")

    def _begin(self, plan: SweepStarted) -> None:
        self._plan = plan
        sweep, shares = plan.sweep, plan.allocation
        workers = {name: shares.placements[name].workers for name in sweep.variants}
        each = ", ".join(f"{name.upper()} on {n}" for name, n in workers.items())
        self._people.say(
            f"sweep {sweep.name}: {sweep.trials} trials, up to {shares.concurrent} side by side; "
            f"workers: {each}"
        )
        if plan.finished_before:
            self._people.say(f"{plan.finished_before} trials are recorded already: not repeated")
        if self._people.console.is_terminal:
            self._live.start()

    def _view(self, told: SweepProgress) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("variant")
        for state in STATES:
            table.add_column(state, justify="right")
        table.add_column("best top-1", justify="right")
        assert self._plan is not None
        for variant in self._plan.sweep.variants:
            own = [trial for trial in told.trials.values() if trial.variant == variant]
            counts = [str(sum(trial.state == state for trial in own) or "") for state in STATES]
            best = max((trial.eval_top1 for trial in own), default=0)
            table.add_row(variant.upper(), *counts, f"{best:.2%}" if best else "")
        return Group(table, Text(self._figures(told)))

    def _figures(self, told: SweepProgress) -> str:
        """Best so far, spent, left."""
        assert self._plan is not None
        parts = []
        best = max(told.trials.values(), key=lambda trial: trial.eval_top1)
        if best.curve:
            name = f"trial {best.number}, {best.variant.upper()}"
            parts.append(f"best {best.eval_top1:.2%} ({name})")
        budget = self._plan.sweep.budget
        of = f" of {budget:,.0f}" if budget else ""
        parts.append(f"spent {told.spent:,.0f}{of} device-seconds")
        if told.spent:
            devices = self._plan.allocation.devices
            left = min(told.remaining, (budget or float("inf")) - told.spent)
            parts.append(f"at most {timedelta(seconds=round(max(0, left) / devices))} left")
        return "; ".join(parts)


def _ending(trial: Trial) -> str:
    name = f"trial {trial.number:>3}  {trial.variant.upper()}"
    if trial.state == sweep_record.FAILED:
        return f"{name}  failed: {trial.reason}"
    at = "" if trial.state == sweep_record.FINISHED else f" at {trial.progress:.0%}"
    settings = "  ".join(
        f"{field} {value:.3g}" if isinstance(value, float) else f"{field} {value}"
        for field, value in trial.settings.items()
    )
    top1 = f"eval top-1 {trial.eval_top1:.2%}"
    return f"{name}  {trial.state}{at}  {top1}  {trial.device_seconds:,.0f} device-s  {settings}"


def _states(trials: Mapping[int, Trial]) -> str:
    states = [trial.state for trial in trials.values()]
    return ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
