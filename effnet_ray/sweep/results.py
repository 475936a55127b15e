"""What a sweep found: the leaderboard, the Pareto front, and the model that was asked for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray.errors import TrainingError
from effnet_ray.model.profile import Cost
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.sweep_record import Sweep, Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderboardRow:
    """A line of the leaderboard."""

    trial: Trial
    cost: Cost

    def as_json(self) -> dict[str, Any]:
        """For the last line of stdout and for outcome.json."""
        return {
            "variant": self.trial.variant,
            "eval_top1": self.trial.eval_top1,
            "cost": self.cost.gmacs,
            "params_m": self.cost.params_m,
            "latency_ms": self.cost.latency_ms,
            "trial": self.trial.number,
            "settings": self.trial.settings,
            "run": self.trial.run,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep found."""

    sweep: Sweep
    uri: str
    """The sweep's folder."""
    trials: tuple[Trial, ...]
    """All of them, by number."""
    board: list[LeaderboardRow]
    """Finished trials, the best first."""
    pareto: list[LeaderboardRow]
    """The cheapest to use first."""
    best: LeaderboardRow
    """What the objective asks for."""
    objective: Objective
    trained_seconds: float
    """Device-seconds of the call that this came of."""

    def as_json(self) -> dict[str, Any]:
        """What the job prints, but for the release."""
        return {
            "sweep": self.sweep.name,
            "best": self.best.as_json(),
            "pareto": [entry.as_json() for entry in self.pareto],
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
) -> Outcome:
    """The outcome of a sweep whose trials are over. `costs`: by number.

    Raises TrainingError where no trial finished, or none stays within the limits.
    """
    tried = tuple(sorted(trials, key=lambda trial: trial.number))
    board = leaderboard(tried, costs)
    best = choose(board, objective)
    if best is None:
        raise TrainingError(f"sweep {sweep.name!r} found no model: {_why_none(tried, len(board))}")
    return Outcome(sweep, uri, tried, board, pareto(board), best, objective, trained_seconds)


def _why_none(tried: Sequence[Trial], finished: int) -> str:
    if finished:
        return f"{finished} trials finished, none within the limits: raise the objective's limits"
    failed = [trial for trial in tried if trial.state == sweep_record.FAILED]
    if failed:
        first = failed[0]
        return f"{len(failed)} trials failed, the first, {first.run}, because: {first.reason}"
    states = ", ".join(f"{n} {state}" for state, n in counts(tried).items())
    return f"no trial came to its end ({states}): raise --budget under another --name"


def leaderboard(trials: Iterable[Trial], cost: Mapping[int, Cost]) -> list[LeaderboardRow]:
    """Finished trials, the best first; of equal ones the cheapest. `cost`: by number."""
    entries = [
        LeaderboardRow(trial=trial, cost=cost[trial.number])
        for trial in trials
        if trial.state == sweep_record.FINISHED
    ]
    return sorted(entries, key=lambda e: (-e.trial.eval_top1, e.cost.gmacs, e.trial.number))


def pareto(board: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Those that no other equals or beats at the same cost or less, the cheapest first."""
    front: list[LeaderboardRow] = []
    for entry in sorted(board, key=lambda e: (e.cost.gmacs, -e.trial.eval_top1)):
        if not front or entry.trial.eval_top1 > front[-1].trial.eval_top1:
            front.append(entry)
    return front


def choose(board: Sequence[LeaderboardRow], objective: Objective) -> LeaderboardRow | None:
    """The model asked for, from a leaderboard; None where no finished one stays in the limits."""
    if objective.objective == "cheapest" and board:
        enough = board[0].trial.eval_top1 - objective.within_points / 100
        near = [entry for entry in board if entry.trial.eval_top1 >= enough]
        return min(near, key=lambda entry: entry.cost.gmacs)
    return next((entry for entry in board if objective.allows(entry.cost)), None)


def seconds_saved(trials: Iterable[Trial]) -> float:
    """Device-seconds that stopped trials would have taken to their ends, at their own pace."""
    return sum(
        trial.device_seconds * (1 / trial.reached - 1)
        for trial in trials
        if trial.state == sweep_record.STOPPED and trial.reached
    )


def counts(trials: Iterable[Trial]) -> dict[str, int]:
    """State → trials, of the states that occur."""
    states = [trial.state for trial in trials]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def objective_json(objective: Objective) -> dict[str, Any]:
    """What was asked for, without what was left open."""
    return {name: value for name, value in asdict(objective).items() if value is not None}
