"""The sweep's rule: a variant competes with itself; cheap ones inform the costly ones."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from effnet_ray.errors import RecipeError
from effnet_ray.sweep.variant_schedule import PlannedTrial, VariantSchedule

COSTS = {"b0": 1.0, "b1": 1.6, "b2": 2.1, "b4": 7.4, "b7": 47.8}


def ladder(trials: int = 24, budget: float | None = None, **more: Any) -> VariantSchedule:
    return VariantSchedule(COSTS, trials, lambda number: {"lr": number}, budget, **more)


def finish(rule: VariantSchedule, trial: PlannedTrial, top1: float, reached: float = 1.0) -> None:
    rule.record_progress(trial.number, top1=top1, progress=reached, spent=reached * trial.cost)
    rule.record_end(trial.number)


def run(rule: VariantSchedule, top1: dict[int, float] | None = None) -> list[PlannedTrial]:
    """Everything, as many at once as the rule gives; better the nearer lr is to 5."""
    running: list[PlannedTrial] = []
    while not rule.done:
        while trial := rule.next():
            running.append(trial)
        for trial in running:
            lr = trial.settings["lr"]
            finish(rule, trial, (top1 or {}).get(lr, 1 - abs(lr - 5) / 100))
        running = []
    return rule.planned


@given(st.integers(len(COSTS), 200))
def test_all_trials_are_used_and_every_variant_has_one(trials: int) -> None:
    tries = run(ladder(trials))
    assert len(tries) == trials
    assert {known.variant for known in tries} == set(COSTS)
    assert [known.number for known in tries] == list(range(trials))


@given(st.integers(len(COSTS), 200))
def test_no_variant_tries_a_setting_twice_and_costly_ones_try_two_at_most(trials: int) -> None:
    tries = run(ladder(trials))
    for variant in COSTS:
        own = [known.settings["lr"] for known in tries if known.variant == variant]
        assert len(own) == len(set(own))
        assert len(own) <= 2 or variant in ("b0", "b1", "b2")


def test_the_cheapest_variants_share_the_sampling_then_try_each_others_best() -> None:
    """b2 does better than the others whatever the settings, so it gets the second round."""
    rule, first, second = ladder(), [], []
    while trial := rule.next():
        first.append(trial)
    for trial in first:
        lr, above = trial.settings["lr"], 0.5 if trial.variant == "b2" else 0.0
        finish(rule, trial, above + (1 - abs(lr - 5) / 100) / 4)
    while trial := rule.next():
        second.append(trial)
    assert {trial.variant for trial in first} == {"b0", "b1", "b2"}
    lrs = [trial.settings["lr"] for trial in first]
    assert lrs == list(range(len(first)))
    untried = [t.settings["lr"] for t in first if t.variant != "b2"]
    nearest = sorted(untried, key=lambda lr: abs(lr - 5))
    by_b2 = [t.settings["lr"] for t in second if t.variant == "b2"]
    assert sorted(by_b2) == sorted(nearest[: len(by_b2)]) and len(by_b2) >= len(second) / 2


def test_a_single_cheapest_variant_tries_every_sampled_setting() -> None:
    costs = {"b0": 1.0, "b3": 3.0, "b7": 47.8}
    tries = run(VariantSchedule(costs, 12, lambda number: {"lr": number}))
    sampled = [known.settings["lr"] for known in tries if known.variant == "b0"]
    assert sampled == list(range(len(sampled)))
    carried = [known.settings["lr"] for known in tries if known.variant == "b3"]
    assert carried == sorted(sampled, key=lambda lr: abs(lr - 5))[: len(carried)]


def test_a_costly_variant_starts_from_the_best_settings_so_far() -> None:
    tries = run(ladder())
    for variant in ("b4", "b7"):
        first = next(known for known in tries if known.variant == variant)
        assert first.settings == {"lr": 5}


def test_the_dearest_variant_goes_first_and_alone_then_the_others_side_by_side() -> None:
    rule, waves = ladder(), list[list[str]]()
    while not rule.done:
        wave = []
        while trial := rule.next():
            wave.append(trial)
        for trial in wave:
            finish(rule, trial, 0.5)
        waves.append([trial.variant for trial in wave])
    assert waves[-3:] == [["b7"], ["b7", "b4"], ["b4"]]
    assert [len(wave) for wave in waves[:-3]] == [10, 10]
    assert all(set(wave) <= {"b0", "b1", "b2"} for wave in waves[:-3])


def test_a_trial_that_got_further_stands_before_one_that_was_stopped() -> None:
    rule = ladder()
    first = []
    while trial := rule.next():
        first.append(trial)
    for trial in first:
        stopped = trial.number != 3
        finish(rule, trial, 0.9 if stopped else 0.8, reached=1 / 16 if stopped else 1.0)
    following = rule.next()
    assert following and following.settings == first[3].settings


def test_waiting_ends_when_trials_fail() -> None:
    rule = ladder()
    while not rule.done:
        trial = rule.next()
        if trial:
            rule.record_end(trial.number)  # without a single result
    assert {known.variant for known in rule.planned} == set(COSTS)


@given(st.floats(1, 200))
def test_the_budget_is_never_overspent_and_what_it_left_out_is_named(budget: float) -> None:
    rule = ladder(budget=budget)
    tries = run(rule)
    assert rule.spent <= budget + 1e-9
    assert len(tries) == 24
    assert all(known.skipped != bool(known.progress) for known in tries)


def test_a_slower_machine_is_noticed_and_the_budget_kept() -> None:
    rule = ladder(budget=40)
    first = rule.next()
    assert first
    rule.record_progress(first.number, top1=0.5, progress=0.5, spent=5 * first.cost)
    assert rule.pace == 10
    rule.record_end(first.number)
    while rule.next():
        pass
    assert sum(not known.skipped for known in rule.planned) == 1 + 2  # 5, 16 and 10 of 40


def test_what_an_earlier_call_decided_about_the_budget_stands() -> None:
    free = ladder(earlier={0: True, 1: False, 2: True})
    assert [known.skipped for known in run(free)][:4] == [False, True, False, False]
    tight = ladder(budget=0.1, earlier={1: True})
    assert [known.skipped for known in run(tight)][:3] == [True, False, True]


def test_what_is_to_come_shrinks_to_nothing() -> None:
    rule, before = ladder(), float("inf")
    while trial := rule.next():
        finish(rule, trial, 0.5)
        assert rule.remaining < before
        before = rule.remaining
    assert rule.done and rule.remaining == 0


def test_fewer_trials_than_variants_are_refused() -> None:
    with pytest.raises(RecipeError, match="--trials 4 is too few for 5 variants"):
        ladder(trials=4)
