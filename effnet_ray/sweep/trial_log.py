"""The log of a sweep's trials: from here storage, the schedule and the console are updated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.asha import PROGRESS, SPENT, TOP1, Brackets
from effnet_ray.sweep.space import Settings
from effnet_ray.sweep.sweep_record import Sweep, Trial, TrialPoint
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.train.run_record import Result

FAILURE = "failure"
"""Report key: why the trial was given up."""
CRASHED = "its driver crashed too often to be restarted again (killed, or out of memory?)"


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """A trial has started, reported or ended."""

    trial: Trial
    trials: Mapping[int, Trial]
    """All trials so far, by number."""
    spent: float
    """Device-seconds of all trials, in this call and earlier ones."""
    remaining: float
    """Device-seconds the rest takes if no trial is stopped early."""


@dataclass(slots=True)
class _DeviceClock:
    """A trial's device-seconds, summed over every start of its workers."""

    before: float = 0.0
    """Device-seconds of earlier starts."""
    current: float = 0.0
    """Device-seconds of the current start, as last reported."""

    def read(self, reported: float) -> float:
        """The total; workers report from 0 again after a restart."""
        if reported < self.current:
            self.before += self.current
        self.current = reported
        return self.before + reported


class TrialLog:
    """Trials by number. Trials that an earlier call ended are replayed from their records."""

    def __init__(
        self,
        sweep: Sweep,
        uri: str,
        schedule: VariantSchedule,
        brackets: Brackets,
        past: Mapping[int, Trial],
        *,
        on_progress: Callable[[SweepProgress], None],
        observe: Callable[[Trial], None],
        result: Callable[[str], Result | None],
    ) -> None:
        """`observe` is called with every ended trial; `result` returns an ended run's result."""
        self.trials = dict(past)
        self.spent_before = sum(trial.device_seconds for trial in past.values())
        """Device-seconds of earlier calls."""
        self._sweep, self._uri, self._schedule = sweep, uri, schedule
        self._on_progress, self._observe, self._result = on_progress, observe, result
        self._clocks = {n: _DeviceClock(trial.device_seconds) for n, trial in past.items()}
        for trial in past.values():
            if trial.state != sweep_record.SKIPPED:
                bracket_trial = brackets.add(trial.variant, trial.number)
                for point in trial.curve:
                    report = {PROGRESS: point.reached, TOP1: point.eval_top1}
                    brackets.decide(trial.variant, bracket_trial, report)

    @property
    def spent(self) -> float:
        """Device-seconds that this call has spent."""
        return self._schedule.spent - self.spent_before

    def replay(self, number: int) -> bool:
        """Report an earlier call's trial to the schedule; return whether it was over."""
        trial = self.trials.get(number)
        if trial is None:
            return False
        if trial.curve:
            self._update_schedule(trial)
        if trial.over:
            self._schedule.record_end(number)
            self._observe(trial)
        return trial.over

    def start(self, number: int, variant: str, settings: Settings) -> None:
        """Record that a trial starts, or goes on from an earlier call."""
        new = Trial(
            number=number,
            variant=variant,
            settings=settings,
            state=sweep_record.RUNNING,
            run=self._sweep.run_name(number, variant),
        )
        self._clocks.setdefault(number, _DeviceClock())
        self._save(self.trials.get(number) or new)

    def report(self, number: int, report: Mapping[str, Any]) -> None:
        """Record a trial's report. An epoch that was repeated replaces its earlier report."""
        trial = self.trials[number]
        if FAILURE in report:
            trial = replace(trial, state=sweep_record.FAILED, reason=report[FAILURE])
        elif TOP1 in report and report[PROGRESS] != trial.progress:
            point = TrialPoint(
                reached=report[PROGRESS],
                eval_top1=report[TOP1],
                device_seconds=self._clocks[number].read(report[SPENT]),
            )
            before = tuple(old for old in trial.curve if old.reached < point.reached)
            trial = replace(trial, curve=(*before, point))
            self._update_schedule(trial)
        else:
            return
        self._save(trial)

    def end(self, number: int, *, crashed: bool) -> None:
        """Record that a trial has ended, and how."""
        self._schedule.record_end(number)
        trial = self.trials[number]
        if trial.state == sweep_record.FAILED:
            pass
        elif crashed:
            self._save(replace(trial, state=sweep_record.FAILED, reason=CRASHED))
        elif result := self._result(trial.run):
            # The run may have ended before its last report arrived.
            self.report(number, {PROGRESS: 1.0, TOP1: result.eval_top1, SPENT: 0.0})
            self._save(replace(self.trials[number], state=sweep_record.FINISHED))
        else:
            self._save(replace(trial, state=sweep_record.STOPPED))
        self._observe(self.trials[number])

    def record_skipped(self) -> None:
        """Record the trials that the budget had no room for."""
        for planned in self._schedule.planned:
            if planned.skipped and planned.number not in self.trials:
                self._save(
                    Trial(
                        number=planned.number,
                        variant=planned.variant,
                        settings=planned.settings,
                        state=sweep_record.SKIPPED,
                        run="",
                    )
                )

    def _update_schedule(self, trial: Trial) -> None:
        self._schedule.record_progress(
            trial.number,
            top1=trial.eval_top1,
            progress=trial.progress,
            spent=trial.device_seconds,
        )

    def _save(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        sweep_record.write_trial(trial, self._uri)
        self._on_progress(
            SweepProgress(trial, self.trials, self._schedule.spent, self._schedule.remaining)
        )
