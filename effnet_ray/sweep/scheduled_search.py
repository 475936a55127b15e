"""The variant schedule as a search algorithm of Ray Tune."""

from typing import Any

from ray.tune.search import Searcher

from effnet_ray.sweep.trial_log import TrialLog
from effnet_ray.sweep.variant_schedule import VariantSchedule


class ScheduledSearch(Searcher):  # type: ignore[misc]  # Ray Tune has no types
    """Suggests the schedule's trials to Ray Tune and passes Tune's reports to the trial log."""

    def __init__(self, schedule: VariantSchedule, log: TrialLog) -> None:
        super().__init__()
        self.schedule, self.log = schedule, log
        self._number: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles searchers to restore them, which the sweep does itself."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config; None asks Tune to call again later."""
        trial = self.schedule.next()
        while trial and self.log.replay(trial.number):
            trial = self.schedule.next()
        self.log.record_skipped()
        if trial is None:
            return str(Searcher.FINISHED) if self.schedule.done else None
        self._number[trial_id] = trial.number
        self.log.start(trial.number, trial.variant, trial.settings)
        return {"number": trial.number, "variant": trial.variant, "settings": trial.settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Called by Tune for every report of a trial."""
        self.log.report(self._number[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Called by Tune when a trial has ended; the report that stopped it comes only here."""
        if result:
            self.on_trial_result(trial_id, result)
        self.log.end(self._number[trial_id], crashed=error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from its own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from its own record."""
