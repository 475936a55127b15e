"""Ray Tune's own ASHA, one per variant: it stops trials for being worse, never for being slow."""

import pytest
from hypothesis import given, strategies as st
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from effnet_ray.sweep.asha import PROGRESS, RUNG, TOP1, Brackets

STOP = TrialScheduler.STOP


def trial(number: int, variant: str) -> Trial:
    config = {"variant": variant, "number": number}
    return Trial("none", config=config, stub=True, trial_id=f"t{number}")


def verdicts(
    reports: list[tuple[int, str, float, float]], brackets: Brackets | None = None
) -> dict[int, list[str]]:
    """What becomes of (trial, variant, share reached, top-1), told in this order."""
    brackets, trials, result = brackets or Brackets(), {}, {}
    for number, variant, reached, top1 in reports:
        if number not in trials:
            trials[number] = trial(number, variant)
            brackets.on_trial_add(None, trials[number])
        verdict = brackets.on_trial_result(None, trials[number], {PROGRESS: reached, TOP1: top1})
        result.setdefault(number, []).append(verdict)
    return result


def test_the_worst_third_of_a_variant_is_stopped_at_the_rung() -> None:
    before = [(n, "b0", RUNG, 0.9 - n / 100) for n in (0, 3, 6)]
    result = verdicts([*before, (7, "b0", RUNG, 0.85), (8, "b0", RUNG, 0.86)])
    assert result[7] == [STOP] and result[8] != [STOP]


def test_nothing_is_stopped_before_the_rung() -> None:
    output = [(n, "b0", share, 0.9 - n / 10) for n in range(8) for share in (1 / 16, 1 / 4, 0.84)]
    assert all(STOP not in result for result in verdicts(output).values())


def test_no_variant_is_stopped_because_others_are_better() -> None:
    output = [(n, "b0", RUNG, 0.9) for n in range(8)]
    result = verdicts([*output, (9, "b7", RUNG, 0.1), (9, "b7", 0.95, 0.2)])
    assert STOP not in result[9]


def test_every_trial_is_stopped_when_the_budget_is_spent() -> None:
    assert verdicts([(0, "b0", 1 / 8, 0.9)], Brackets(lambda: True)) == {0: [STOP]}
    assert verdicts([(0, "b0", 1.0, 0.9)], Brackets(lambda: True)) != {0: [STOP]}


reports = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0.1, RUNG, 0.95, 1.0]),
              st.floats(0, 1)),
    max_size=30,
)  # fmt: skip


@given(reports, reports)
def test_a_variants_verdicts_do_not_depend_on_other_variants(
    mine: list[tuple[int, float, float]], others: list[tuple[int, float, float]]
) -> None:
    alone = [(number, "b3", reached, top1) for number, reached, top1 in mine]
    beside = [(100 + number, "b0", reached, top1) for number, reached, top1 in others]
    mixed = [output for pair in zip(alone, beside, strict=False) for output in pair]
    mixed += alone[len(beside) :] + beside[len(alone) :]
    result = verdicts(mixed)
    assert {number: result[number] for number in verdicts(alone)} == verdicts(alone)


def test_a_trial_that_has_reached_its_end_is_not_called_stopped() -> None:
    output = [(0, "b0", 1.0, 0.9), (1, "b0", 1.0, 0.1)]
    assert STOP not in verdicts(output)[1]


def test_the_rung_is_where_asha_places_it() -> None:
    brackets = Brackets()
    brackets.add("b0", 0)
    placed = [rung for rung, _ in brackets._brackets["b0"]._brackets[0]._rungs]
    assert placed == pytest.approx([RUNG])
