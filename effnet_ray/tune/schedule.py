"""The ladder and the fair brackets as Ray Tune knows such things: a Searcher and a scheduler."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from effnet_ray.tune.ladder import Ladder

REACHED = "reached"
"""Key of a report: how much of its own full cost a trial has taken, 0 to 1."""
TOP1, SPENT = "eval_top1", "device_seconds"
"""Keys of a report: eval top-1, and device-seconds so far."""
HALVING = 4
"""A rung lets a quarter of the trials pass: ASHA's own default (Li et al. 2018, §4)."""
FIRST_RUNG = 1 / 4
"""Share of a full trial after which it may be stopped: earlier, high rates look better than they
will be (`benchmarks/search.py`)."""


class Brackets(FIFOScheduler):  # type: ignore[misc]  # Ray Tune has no types
    """One real ASHA for every variant: trials compete with trials that cost the same.

    Rungs lie at shares of a trial's own full cost: no variant is stopped because it is slow, and
    none goes on because it is cheap.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[str, ASHAScheduler] = {}

    def _bracket(self, trial: Trial) -> ASHAScheduler:
        variant = trial.config["variant"]
        if variant not in self._of:
            self._of[variant] = ASHAScheduler(
                time_attr=REACHED,
                metric=TOP1,
                mode="max",
                max_t=1,
                grace_period=FIRST_RUNG,
                reduction_factor=HALVING,
                stop_last_trials=False,
            )
        return self._of[variant]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tune asks; the metric is ours."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial enters its variant's bracket."""
        self._bracket(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop, as the variant's bracket says."""
        if result.get(REACHED, 0) >= 1:
            return str(TrialScheduler.CONTINUE)  # it ends by itself
        return str(self._bracket(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(
        self, tune_controller: Any, trial: Trial, result: dict[str, Any]
    ) -> None:
        """A trial ended by itself."""
        self._bracket(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial was taken out before it ran."""
        self._bracket(trial).on_trial_remove(tune_controller, trial)


class LadderSearch(Searcher):  # type: ignore[misc]  # Ray Tune has no types
    """Lets Ray Tune ask the ladder."""

    def __init__(self, ladder: Ladder) -> None:
        super().__init__(metric=TOP1, mode="max")
        self.ladder = ladder
        self._number: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config; None: ask again later."""
        found = self.ladder.next()
        if found is None:
            return str(Searcher.FINISHED) if self.ladder.done else None
        self._number[trial_id] = found.number
        return {"variant": found.variant, "number": found.number, **found.settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has been evaluated."""
        if TOP1 in result:
            self.ladder.heard(
                self._number[trial_id],
                top1=result[TOP1],
                reached=result[REACHED],
                spent=result[SPENT],
            )

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended, by itself or not."""
        if result:
            self.on_trial_result(trial_id, result)
        self.ladder.ended(self._number[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record is what it resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record is what it resumes from."""
