"""Leaderboard, Pareto front and objective of a sweep."""

import pytest
from hypothesis import given, strategies as st

from effnet_ray.errors import RecipeError
from effnet_ray.model.profile import Cost
from effnet_ray.sweep import results
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.results import LeaderboardRow
from effnet_ray.sweep.sweep_record import Trial, TrialPoint


def trial(number: int, top1: float, state: str = "finished", reached: float = 1.0) -> Trial:
    curve = (TrialPoint(reached=reached, eval_top1=top1, device_seconds=100 * reached),)
    return Trial(number=number, variant="b0", settings={}, state=state, run="r", curve=curve)


def cost(gmacs: float, params: float = 5, latency: float = 10) -> Cost:
    return Cost(params_m=params, gmacs=gmacs, latency_ms=latency, device="cpu")


models = st.lists(
    st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.8]), st.sampled_from([1.0, 2.0, 4.0])),
    max_size=12,
)


def board_of(models: list[tuple[float, float]]) -> list[LeaderboardRow]:
    trials = [trial(number, top1) for number, (top1, _) in enumerate(models)]
    return results.leaderboard(trials, {n: cost(gmacs) for n, (_, gmacs) in enumerate(models)})


@given(models)
def test_the_front_holds_exactly_what_nothing_dominates(models: list[tuple[float, float]]) -> None:
    board = board_of(models)
    front = results.pareto(board)

    def point(entry: LeaderboardRow) -> tuple[float, float]:
        return entry.trial.eval_top1, entry.cost.gmacs

    def dominated(entry: LeaderboardRow) -> bool:
        top1, gmacs = point(entry)
        return any(
            other.trial.eval_top1 >= top1
            and other.cost.gmacs <= gmacs
            and point(other) != (top1, gmacs)
            for other in board
        )

    assert {point(entry) for entry in front} == {point(e) for e in board if not dominated(e)}
    assert len({point(entry) for entry in front}) == len(front)  # equals are named once
    assert [entry.cost.gmacs for entry in front] == sorted(entry.cost.gmacs for entry in front)


@given(models)
def test_the_best_is_on_the_front_and_at_the_top(models: list[tuple[float, float]]) -> None:
    board = board_of(models)
    best = results.choose(board, Objective())
    if models:
        assert best is board[0] and best in results.pareto(board)
        assert best.trial.eval_top1 == max(top1 for top1, _ in models)
    else:
        assert best is None


def test_only_finished_trials_are_models() -> None:
    trials = [trial(0, 0.9, "stopped", 0.6), trial(1, 0.8), trial(2, 0.95, "failed", 0.6)]
    board = results.leaderboard(trials, {n: cost(1) for n in range(3)})
    assert [entry.trial.number for entry in board] == [1]


def test_limits_are_kept() -> None:
    trials = [trial(0, 0.9), trial(1, 0.8), trial(2, 0.7)]
    costs = {0: cost(10, 60, 100), 1: cost(2, 10, 20), 2: cost(1, 5, 10)}
    board = results.leaderboard(trials, costs)

    def best(**limits: float) -> int | None:
        chosen = results.choose(board, Objective(objective="accuracy-under", **limits))
        return chosen and chosen.trial.number

    assert best(max_params=70) == 0
    assert best(max_params=12) == 1
    assert best(max_latency_ms=15) == 2
    assert best(max_cost=2, max_latency_ms=19) == 2
    assert best(max_cost=0.5) is None
    with pytest.raises(RecipeError, match="no variant of this sweep is within the limits"):
        Objective(objective="accuracy-under", max_cost=0.5).check(costs)


def test_the_cheapest_within_some_points() -> None:
    trials = [trial(0, 0.900), trial(1, 0.893), trial(2, 0.85)]
    board = results.leaderboard(trials, {0: cost(10), 1: cost(2), 2: cost(1)})

    def cheapest(points: float) -> int | None:
        chosen = results.choose(board, Objective(objective="cheapest", within_points=points))
        return chosen and chosen.trial.number

    assert [cheapest(0), cheapest(1), cheapest(5.01)] == [0, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "speed"},
        {"objective": "accuracy-under"},
        {"max_params": 5.0},
        {"objective": "cheapest", "max_cost": 1.0},
        {"objective": "accuracy-under", "max_cost": 0.0},
        {"objective": "cheapest", "within_points": -1.0},
    ],
)
def test_contradictory_objectives_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Objective(**wrong)  # type: ignore[arg-type]


def test_what_stopping_early_saved() -> None:
    trials = [trial(0, 0.9), trial(1, 0.5, "stopped", 0.6), trial(2, 0.5, "failed", 0.5)]
    assert results.seconds_saved(trials) == pytest.approx(40)
    assert results.counts(trials) == {"finished": 1, "stopped": 1, "failed": 1}
