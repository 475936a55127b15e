"""The sweep's account of its trials: storage, the ladder and the people are told from here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.asha import PROGRESS, SPENT, TOP1, Brackets
from effnet_ray.sweep.space import Settings
from effnet_ray.sweep.sweep_record import Point, Sweep, Trial
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.train.run_record import Result

FAILURE = "failure"
"""Key of a report: why the trial was given up."""
CRASHED = "its driver died more often than it may be started again (killed, or out of memory?)"


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """A trial has begun, reported or ended."""

    trial: Trial
    trials: Mapping[int, Trial]
    """All so far."""
    spent: float
    """Device-seconds of all trials, this call's and earlier ones'."""
    to_come: float
    """Device-seconds that the rest would take, if no trial were stopped early."""


@dataclass(slots=True)
class _Clock:
    """A trial's device-seconds, over all the times its workers were started."""

    before: float = 0.0
    """Of earlier starts."""
    now: float = 0.0
    """Of this start, as it says."""

    def read(self, reported: float) -> float:
        """All together. What workers report begins anew when they do."""
        if reported < self.now:
            self.before += self.now
        self.now = reported
        return self.before + reported


class TrialLog:
    """Trials by number. Those that were over when the sweep was last left are only looked up."""

    def __init__(
        self,
        sweep: Sweep,
        uri: str,
        ladder: VariantSchedule,
        brackets: Brackets,
        past: Mapping[int, Trial],
        *,
        on_progress: Callable[[SweepProgress], None],
        learn: Callable[[Trial], None],
        result: Callable[[str], Result | None],
    ) -> None:
        """`learn` is told of trials that are over; `result` is how a run ended, if it has."""
        self.trials = dict(past)
        self.began_with = sum(trial.device_seconds for trial in past.values())
        """Device-seconds of earlier calls."""
        self._sweep, self._uri, self._ladder = sweep, uri, ladder
        self._hear, self._learn, self._result = on_progress, learn, result
        self._clocks = {number: _Clock(trial.device_seconds) for number, trial in past.items()}
        for trial in past.values():
            if trial.state != sweep_record.SKIPPED:
                entrant = brackets.enter(trial.variant, trial.number)
                for point in trial.curve:
                    report = {PROGRESS: point.reached, TOP1: point.eval_top1}
                    brackets.judge(trial.variant, entrant, report)

    @property
    def spent(self) -> float:
        """Device-seconds that this call has spent."""
        return self._ladder.spent - self.began_with

    def recorded(self, number: int) -> bool:
        """Whether the trial was over before this call began; then the ladder is told."""
        trial = self.trials.get(number)
        if trial is None:
            return False
        if trial.curve:
            self._tell_ladder(trial)
        if trial.over:
            self._ladder.ended(number)
            self._learn(trial)
        return trial.over

    def begins(self, number: int, variant: str, settings: Settings) -> None:
        """A trial is handed out."""
        known = self.trials.get(number)
        name = f"{self._sweep.name}-{number:03d}-{variant}"
        fresh = Trial(
            number=number, variant=variant, settings=settings, state=sweep_record.RUNNING, run=name
        )
        self._clocks.setdefault(number, _Clock())
        self._keep(known or fresh)

    def hears(self, number: int, report: Mapping[str, Any]) -> None:
        """A trial reports. An epoch that it had to repeat replaces what it said before."""
        trial = self.trials[number]
        if FAILURE in report:
            trial = replace(trial, state=sweep_record.FAILED, reason=report[FAILURE])
        elif TOP1 in report and report[PROGRESS] != trial.reached:
            point = Point(
                reached=report[PROGRESS],
                eval_top1=report[TOP1],
                device_seconds=self._clocks[number].read(report[SPENT]),
            )
            before = tuple(old for old in trial.curve if old.reached < point.reached)
            trial = replace(trial, curve=(*before, point))
            self._tell_ladder(trial)
        else:
            return
        self._keep(trial)

    def ends(self, number: int, *, crashed: bool) -> None:
        """A trial is over."""
        self._ladder.ended(number)
        trial = self.trials[number]
        if trial.state == sweep_record.FAILED:
            pass
        elif crashed:
            self._keep(replace(trial, state=sweep_record.FAILED, reason=CRASHED))
        elif result := self._result(trial.run):
            # It may have ended before its sweep heard of it.
            self.hears(number, {PROGRESS: 1.0, TOP1: result.eval_top1, SPENT: 0.0})
            self._keep(replace(self.trials[number], state=sweep_record.FINISHED))
        else:
            self._keep(replace(trial, state=sweep_record.STOPPED))
        self._learn(self.trials[number])

    def skips(self) -> None:
        """Record the trials for which the budget had no room."""
        for known in self._ladder.tries:
            if known.skipped and known.number not in self.trials:
                self._keep(
                    Trial(
                        number=known.number,
                        variant=known.variant,
                        settings=known.settings,
                        state=sweep_record.SKIPPED,
                        run="",
                    )
                )

    def _tell_ladder(self, trial: Trial) -> None:
        self._ladder.heard(
            trial.number,
            top1=trial.eval_top1,
            reached=trial.reached,
            spent=trial.device_seconds,
        )

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        sweep_record.write_trial(trial, self._uri)
        self._hear(SweepProgress(trial, self.trials, self._ladder.spent, self._ladder.to_come))
