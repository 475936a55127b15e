"""Ray Tune's own ASHA, one for each variant: stopped for being worse, never for being slow."""

from typing import Any

from hypothesis import given, strategies as st
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from effnet_ray.tune.ladder import Ladder
from effnet_ray.tune.schedule import REACHED, SPENT, TOP1, Brackets, LadderSearch

STOP = TrialScheduler.STOP


def trial(name: str, variant: str) -> Trial:
    return Trial("none", config={"variant": variant}, stub=True, trial_id=name)


def verdicts(reports: list[tuple[str, str, float, float]]) -> dict[str, list[str]]:
    """What becomes of (trial, variant, share reached, top-1), told in this order."""
    brackets, trials, found = Brackets(), {}, {}
    for name, variant, reached, top1 in reports:
        if name not in trials:
            trials[name] = trial(name, variant)
            brackets.on_trial_add(None, trials[name])
        verdict = brackets.on_trial_result(None, trials[name], {REACHED: reached, TOP1: top1})
        found.setdefault(name, []).append(verdict)
    return found


def test_the_worse_three_quarters_of_a_variant_are_stopped_at_a_rung() -> None:
    told = [(f"t{n}", "b0", 1 / 4, 0.9 - n / 100) for n in range(8)]
    found = verdicts(told)
    assert found["t0"] != [STOP]
    assert all(found[f"t{n}"] == [STOP] for n in range(1, 8))


def test_no_variant_is_stopped_because_others_are_better() -> None:
    told = [(f"b0-{n}", "b0", 1 / 4, 0.9) for n in range(8)]
    found = verdicts([*told, ("slow", "b7", 1 / 4, 0.1), ("slow", "b7", 1 / 2, 0.2)])
    assert STOP not in found["slow"]


reports = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([1 / 16, 1 / 8, 1 / 4, 1.0]),
              st.floats(0, 1)),
    max_size=30,
)  # fmt: skip


@given(reports, reports)
def test_a_variants_verdicts_do_not_depend_on_other_variants(
    mine: list[tuple[str, float, float]], others: list[tuple[str, float, float]]
) -> None:
    alone = [(f"mine-{name}", "b3", reached, top1) for name, reached, top1 in mine]
    beside = [(f"other-{name}", "b0", reached, top1) for name, reached, top1 in others]
    mixed = [told for pair in zip(alone, beside, strict=False) for told in pair]
    mixed += alone[len(beside) :] + beside[len(alone) :]
    found = verdicts(mixed)
    assert {name: found[name] for name in verdicts(alone)} == verdicts(alone)


def test_a_trial_that_has_reached_its_end_is_not_called_stopped() -> None:
    told = [("best", "b0", 1.0, 0.9), ("last", "b0", 1.0, 0.1)]
    assert STOP not in verdicts(told)["last"]


def test_the_searcher_waits_for_the_wave_below_and_ends_with_the_ladder() -> None:
    search = LadderSearch(Ladder({"b0": 1.0, "b7": 48.0}, 3, lambda: {"lr": 1e-3}))
    first, second = search.suggest("one"), search.suggest("two")
    assert isinstance(first, dict) and first["variant"] == "b0" and first["lr"] == 1e-3
    assert search.suggest("three") is None
    report: dict[str, Any] = {TOP1: 0.5, REACHED: 1.0, SPENT: 1.0}
    for name in ("one", "two")[: 2 if second else 1]:
        search.on_trial_complete(name, report)
    third = search.suggest("three")
    assert isinstance(third, dict) and third["variant"] == "b7"
    search.on_trial_complete("three", None, error=True)
    assert search.suggest("four") == "FINISHED"
