"""A sweep goes on where it was, if its recorded trials are those that its schedule plans."""

from collections.abc import Mapping

import pytest
from hypothesis import given, strategies as st

from effnet_ray.errors import RunExistsError
from effnet_ray.sweep.sweep_record import FINISHED, RUNNING, Trial, TrialPoint
from effnet_ray.sweep.tune import _check_same_plan
from effnet_ray.sweep.variant_schedule import VariantSchedule

COSTS = {"b0": 1.0, "b1": 1.6, "b2": 2.1, "b4": 7.4, "b7": 47.8}


def schedule() -> VariantSchedule:
    return VariantSchedule(COSTS, 16, lambda number: {"lr": number})


def recorded(rule: VariantSchedule) -> dict[int, Trial]:
    """The trials as their records have them."""
    return {
        trial.number: Trial(
            number=trial.number,
            variant=trial.variant,
            settings=trial.settings,
            state=FINISHED if trial.over else RUNNING,
            run="",
            curve=(TrialPoint(reached=1.0, eval_top1=trial.top1, device_seconds=1.0),)
            if trial.progress
            else (),
        )
        for trial in rule.planned
    }


def run(rule: VariantSchedule, ended: int) -> None:
    """Until so many trials have ended; lr 5 is best, and b2 better than the others."""
    while sum(trial.over for trial in rule.planned) < ended and not rule.done:
        while rule.next():
            pass
        for trial in rule.planned:
            if not trial.over and sum(t.over for t in rule.planned) < ended:
                top1 = 0.8 - abs(trial.settings["lr"] - 5) / 100 + 0.1 * (trial.variant == "b2")
                rule.record_progress(trial.number, top1=top1, progress=1.0, spent=1.0)
                rule.record_end(trial.number)


@given(st.integers(0, 16))
def test_a_sweep_that_stopped_anywhere_is_the_same_plan(ended: int) -> None:
    rule = schedule()
    run(rule, ended)
    _check_same_plan(schedule(), recorded(rule))


@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_record_of_another_schedule_is_refused(number: int) -> None:
    rule = schedule()
    run(rule, 16)
    past: Mapping[int, Trial] = recorded(rule)
    other = "b7" if past[number].variant != "b7" else "b4"
    past = {**past, number: Trial(**{**_fields(past[number]), "variant": other})}
    with pytest.raises(RunExistsError, match=rf"trial {number} of this sweep was recorded for"):
        _check_same_plan(schedule(), past)


def _fields(trial: Trial) -> dict[str, object]:
    return {name: getattr(trial, name) for name in Trial.__slots__}
