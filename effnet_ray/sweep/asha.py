"""The ladder and the fair brackets as Ray Tune knows such things: a Searcher and a scheduler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from effnet_ray.sweep.space import Settings
from effnet_ray.sweep.variant_schedule import VariantSchedule

PROGRESS = "reached"
"""Key of a report: how much of its own full cost a trial has taken, 0 to 1."""
TOP1, SPENT = "eval_top1", "device_seconds"
"""Keys of a report: eval top-1, and device-seconds so far."""
KEEPS = 2 / 3
"""Share of a variant's trials that a rung lets pass."""
FIRST_RUNG = 0.6
"""Share of a full trial after which it may be stopped; the next rung lies at 0.9. Earlier, rates
that are too high look better than they will be (`benchmarks/search.py`)."""
RUNGS = (FIRST_RUNG, FIRST_RUNG / KEEPS)
"""Where ASHA looks: as it places them."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """What ASHA knows of a trial. Its number stays, Tune's id is another one after resuming."""

    trial_id: str


class Brackets(FIFOScheduler):  # type: ignore[misc]  # Ray Tune has no types
    """One real ASHA for every variant: trials compete with trials that cost the same.

    Rungs lie at shares of a trial's own full cost: no variant is stopped because it is slow, and
    none goes on because it is cheap. `spent_up` says when the budget ends every trial; `stop` is
    told a trial's number when it has been stopped.
    """

    def __init__(
        self,
        spent_up: Callable[[], bool] = lambda: False,
        stop: Callable[[int], object] = lambda number: None,
    ) -> None:
        super().__init__()
        self._spent_up, self._stop = spent_up, stop
        self._of: dict[str, ASHAScheduler] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles it for a restoring that we do ourselves."""
        return {}

    def enter(self, variant: str, number: int) -> Entrant:
        """A trial enters its variant's bracket."""
        if variant not in self._of:
            self._of[variant] = ASHAScheduler(
                time_attr=PROGRESS,
                metric=TOP1,
                mode="max",
                max_t=1,
                grace_period=FIRST_RUNG,
                reduction_factor=1 / KEEPS,
                stop_last_trials=False,
            )
        entrant = Entrant(str(number))
        self._of[variant].on_trial_add(None, entrant)
        return entrant

    def judge(self, variant: str, entrant: Entrant, report: Mapping[str, Any]) -> str:
        """Continue or stop, as the variant's bracket says."""
        return str(self._of[variant].on_trial_result(None, entrant, report))

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tune asks; the metric is ours."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Tune has a new trial."""
        self.enter(trial.config["variant"], trial.config["number"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune has a trial's report."""
        if result.get(PROGRESS, 0) >= 1:
            return str(TrialScheduler.CONTINUE)  # it ends by itself
        number, verdict = trial.config["number"], str(TrialScheduler.STOP)
        if not self._spent_up():
            verdict = self.judge(trial.config["variant"], Entrant(str(number)), result)
        if verdict == TrialScheduler.STOP:
            self._stop(number)
        return verdict

    def on_trial_complete(
        self, tune_controller: Any, trial: Trial, result: dict[str, Any]
    ) -> None:
        """A trial ended by itself."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial was taken out before it ran."""


class Book(Protocol):
    """Keeps account of the trials (`book`)."""

    def recorded(self, number: int) -> bool:
        """Whether the trial was over before this call began, and has told the ladder so."""

    def begins(self, number: int, variant: str, settings: Settings) -> None:
        """A trial is handed out."""

    def hears(self, number: int, report: Mapping[str, Any]) -> None:
        """A trial reports."""

    def ends(self, number: int, *, crashed: bool) -> None:
        """A trial is over."""

    def skips(self) -> None:
        """The ladder may have found no room in the budget for some trials."""


class ScheduledSearch(Searcher):  # type: ignore[misc]  # Ray Tune has no types
    """Lets Ray Tune ask the ladder."""

    def __init__(self, ladder: VariantSchedule, book: Book) -> None:
        super().__init__()
        self.ladder, self.book = ladder, book
        self._number: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles it for a restoring that we do ourselves."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config; None: ask again later."""
        found = self.ladder.next()
        while found and self.book.recorded(found.number):
            found = self.ladder.next()
        self.book.skips()
        if found is None:
            return str(Searcher.FINISHED) if self.ladder.done else None
        self._number[trial_id] = found.number
        self.book.begins(found.number, found.variant, found.settings)
        return {"number": found.number, "variant": found.variant, "settings": found.settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial reports."""
        self.book.hears(self._number[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended, by itself or not. The report that stopped it comes only here."""
        if result:
            self.on_trial_result(trial_id, result)
        self.book.ends(self._number[trial_id], crashed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record is what it resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record is what it resumes from."""
