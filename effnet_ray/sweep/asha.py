"""One ASHA bracket per variant, as a scheduler of Ray Tune."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from effnet_ray.train import metric_definitions

PROGRESS, SPENT = metric_definitions.PROGRESS, metric_definitions.DEVICE_SECONDS
"""Report keys: share of the trial's own full cost that it has taken, and device-seconds so far."""
TOP1, MODE = metric_definitions.EVAL_TOP1.key, metric_definitions.EVAL_TOP1.mode
"""What ranks trials, and which way."""
KEEP = 2 / 3
"""Share of a variant's trials that continue past the rung. Chosen with `benchmarks/search.py`."""
RUNG = 0.85
"""Share of a full trial after which it may be stopped. On real pictures a rung at 0.6 cost half a
point of top-1: settings that end best are not the best by then
(`benchmarks/real/sweeps.py`)."""


@dataclass(frozen=True, slots=True)
class BracketTrial:
    """What ASHA needs to know of a trial: the sweep's own number, which outlives Tune's ids."""

    trial_id: str


class Brackets(FIFOScheduler):  # type: ignore[misc]  # Ray Tune has no types
    """Runs one ASHA per variant, so that trials compete only with trials of the same cost.

    The rung is a share of a trial's own full cost: no variant is stopped for being slow or kept
    for being cheap. `out_of_budget` ends every trial at its next report; `stop` is called with the
    number of a stopped trial.
    """

    def __init__(
        self,
        out_of_budget: Callable[[], bool] | None = None,
        stop: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__()
        self._out_of_budget, self._stop = out_of_budget, stop
        self._brackets: dict[str, ASHAScheduler] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles schedulers to restore them, which the sweep does itself."""
        return {}

    def add(self, variant: str, number: int) -> BracketTrial:
        """Add a trial to its variant's bracket."""
        if variant not in self._brackets:
            self._brackets[variant] = ASHAScheduler(
                time_attr=PROGRESS,
                metric=TOP1,
                mode=MODE,
                max_t=1,
                grace_period=RUNG,
                reduction_factor=1 / KEEP,
                stop_last_trials=False,
            )
        trial = BracketTrial(str(number))
        self._brackets[variant].on_trial_add(None, trial)
        return trial

    def decide(self, variant: str, trial: BracketTrial, report: Mapping[str, Any]) -> str:
        """Return the bracket's decision: continue or stop."""
        return str(self._brackets[variant].on_trial_result(None, trial, report))

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept whatever Tune passes: the metric is fixed here."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Called by Tune for a new trial."""
        self.add(trial.config["variant"], trial.config["number"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Called by Tune for every report; returns continue or stop."""
        if result.get(PROGRESS, 0) >= 1:
            return str(TrialScheduler.CONTINUE)  # it is about to end by itself
        number, decision = trial.config["number"], str(TrialScheduler.STOP)
        if not (self._out_of_budget and self._out_of_budget()):
            decision = self.decide(trial.config["variant"], BracketTrial(str(number)), result)
        if decision == TrialScheduler.STOP and self._stop:
            self._stop(number)
        return decision

    def on_trial_complete(
        self, tune_controller: Any, trial: Trial, result: dict[str, Any]
    ) -> None:
        """Called by Tune when a trial ends by itself; the sweep's trial log records that."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Called by Tune when a trial is removed before it ran."""
