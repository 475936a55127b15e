"""The outcome of a sweep: leaderboard, Pareto front, and the model the objective selects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray.errors import TrainingError
from effnet_ray.model.profile import Cost
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.sweep_record import Sweep, Trial
from effnet_ray.train.metric_definitions import EVAL_TOP1


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderboardRow:
    """A finished trial and the cost of its model."""

    trial: Trial
    cost: Cost

    def as_json(self) -> dict[str, Any]:
        """The row of the job's JSON line and of outcome.json."""
        return {
            "variant": self.trial.variant,
            EVAL_TOP1.key: self.trial.eval_top1,
            "cost": self.cost.gmacs,
            "params_m": self.cost.params_m,
            "latency_ms": self.cost.latency_ms,
            "trial": self.trial.number,
            "settings": self.trial.settings,
            "run": self.trial.run,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a sweep."""

    sweep: Sweep
    uri: str
    """The sweep's folder."""
    trials: tuple[Trial, ...]
    """All trials, by number."""
    board: list[LeaderboardRow]
    """Finished trials, best first."""
    pareto: list[LeaderboardRow]
    """The Pareto front of accuracy and cost, cheapest first."""
    best: LeaderboardRow
    """The model the objective selects."""
    objective: Objective
    trained_seconds: float
    """Device-seconds spent by this call."""
    eval_images: int = 0
    """Images that eval top-1 was measured on; 0 if unknown."""

    def as_json(self) -> dict[str, Any]:
        """The job's JSON line, without the release."""
        return {
            "sweep": self.sweep.name,
            "best": self.best.as_json(),
            "pareto": [row.as_json() for row in self.pareto],
            "trials": len(self.trials),
            "states": counts(self.trials),
            "trained_seconds": self.trained_seconds,
            "saved_seconds": seconds_saved(self.trials),
        }


def summarize(
    sweep: Sweep,
    uri: str,
    trials: Iterable[Trial],
    costs: Mapping[int, Cost],
    objective: Objective,
    trained_seconds: float,
    eval_images: int = 0,
) -> Outcome:
    """The outcome of a sweep whose trials have ended. `costs`: trial number → cost.

    Raises TrainingError if no trial finished, or none is within the objective's limits.
    """
    ended = tuple(sorted(trials, key=lambda trial: trial.number))
    board = leaderboard(ended, costs)
    best = choose(board, objective)
    if best is None:
        raise TrainingError(
            f"sweep {sweep.name!r} has no best model: {_no_model_reason(ended, len(board))}"
        )
    return Outcome(
        sweep, uri, ended, board, pareto(board), best, objective, trained_seconds, eval_images
    )


def _no_model_reason(trials: Sequence[Trial], finished: int) -> str:
    if finished:
        return (
            f"none of its {finished} finished trials is within the limits: raise --max-params, "
            "--max-latency-ms or --max-cost"
        )
    failed = [trial for trial in trials if trial.state == sweep_record.FAILED]
    if failed:
        first = failed[0]
        return (
            f"no trial finished, {len(failed)} failed; the first error, in run {first.run}: "
            f"{first.reason}"
        )
    states = ", ".join(f"{n} {state}" for state, n in counts(trials).items())
    return f"no trial finished ({states}): run again with a higher --budget and another --name"


def leaderboard(trials: Iterable[Trial], cost: Mapping[int, Cost]) -> list[LeaderboardRow]:
    """Finished trials, best first, cheaper first on ties. `cost`: trial number → cost."""
    rows = [
        LeaderboardRow(trial=trial, cost=cost[trial.number])
        for trial in trials
        if trial.state == sweep_record.FINISHED
    ]
    return sorted(rows, key=lambda e: (-e.trial.eval_top1, e.cost.gmacs, e.trial.number))


def pareto(board: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Rows that no other equals or beats at the same or lower cost, cheapest first."""
    front: list[LeaderboardRow] = []
    for row in sorted(board, key=lambda e: (e.cost.gmacs, -e.trial.eval_top1)):
        if not front or row.trial.eval_top1 > front[-1].trial.eval_top1:
            front.append(row)
    return front


def choose(board: Sequence[LeaderboardRow], objective: Objective) -> LeaderboardRow | None:
    """The model the objective selects; None if no finished model is within the limits."""
    if objective.objective == "cheapest" and board:
        enough = board[0].trial.eval_top1 - objective.within_points / 100
        near = [row for row in board if row.trial.eval_top1 >= enough]
        return min(near, key=lambda row: row.cost.gmacs)
    return next((row for row in board if objective.allows(row.cost)), None)


def seconds_saved(trials: Iterable[Trial]) -> float:
    """Device-seconds saved by stopping trials early, each extrapolated at its own pace."""
    return sum(
        trial.device_seconds * (1 / trial.progress - 1)
        for trial in trials
        if trial.state == sweep_record.STOPPED and trial.progress
    )


def counts(trials: Iterable[Trial]) -> dict[str, int]:
    """State → number of trials, for the states that occur."""
    states = [trial.state for trial in trials]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def objective_json(objective: Objective) -> dict[str, Any]:
    """The objective's fields that are set."""
    return {name: value for name, value in asdict(objective).items() if value is not None}
