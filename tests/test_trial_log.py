"""The sweep's log of its trials, and what it records of them."""

from pathlib import Path
from typing import Any

import pytest

from effnet_ray import Recipe
from effnet_ray.errors import RunExistsError, StorageError
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.asha import PROGRESS, RUNG, SPENT, TOP1, Brackets
from effnet_ray.sweep.scheduled_search import ScheduledSearch
from effnet_ray.sweep.sweep_record import Sweep, Trial
from effnet_ray.sweep.trial_log import CRASHED, FAILURE, SweepProgress, TrialLog
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.train.run_record import Result

SWEEP = Sweep(
    name="pets", recipe=Recipe(weights="none"), variants=("b0", "b7"), trials=4,
    space={"lr": "log:1e-4:1e-2"}, searcher="random", budget=None, data="/data",
    fingerprint="f00d",
)  # fmt: skip

RESULT = Result(
    run="pets-000-b0", run_uri="/runs/pets/runs/pets-000-b0", checkpoint="", eval_top1=0.9,
    eval_top5=1.0, eval_loss=0.2, epochs=10, steps=100, resumed_from_step=0,
    train_images_per_s=1.0, seconds=1.0, quarantined=0,
)  # fmt: skip


def told(reached: float, top1: float, seconds: float) -> dict[str, Any]:
    return {PROGRESS: reached, TOP1: top1, SPENT: seconds}


class Bench:
    """A book with its ladder, asked as Ray Tune asks, and the runs that have ended."""

    def __init__(self, folder: Path, budget: float | None = None) -> None:
        self.uri = str(folder)
        past = sweep_record.load_trials(self.uri)
        self.ladder = VariantSchedule(
            {"b0": 10.0, "b7": 480.0}, 4, lambda number: {"lr": 10.0**-number}, budget,
            earlier={n: trial.state != sweep_record.SKIPPED for n, trial in past.items()},
        )  # fmt: skip
        self.brackets = Brackets()
        self.ended: set[str] = set()
        self.heard: list[SweepProgress] = []
        self.learned: list[int] = []
        self.book = TrialLog(
            SWEEP, self.uri, self.ladder, self.brackets, past, on_progress=self.heard.append,
            observe=lambda trial: self.learned.append(trial.number),
            result=lambda run: RESULT if run in self.ended else None,
        )  # fmt: skip
        self.search = ScheduledSearch(self.ladder, self.book)
        self._asked = 0

    def start(self) -> int | None:
        """Number of the next trial; the searcher knows it by its name."""
        given = self.search.suggest(f"t{self._asked}")
        self._asked += 1
        if not isinstance(given, dict):
            return None
        self.search._number[f"#{given['number']}"] = given["number"]
        return int(given["number"])

    def report(self, number: int, reached: float, top1: float, seconds: float) -> None:
        """What a trial says at an epoch's end."""
        self.search.on_trial_result(f"#{number}", told(reached, top1, seconds))

    def end(self, number: int, *, finished: bool = False, error: bool = False) -> None:
        """The trial is over."""
        if finished:
            self.ended.add(f"pets-{number:03d}-{self.book.trials[number].variant}")
        self.search.on_trial_complete(f"#{number}", None, error=error)


def states(bench: Bench) -> list[str]:
    return [trial.state for _, trial in sorted(sweep_record.load_trials(bench.uri).items())]


def test_every_end_of_a_trial_is_told_apart(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert [bench.start(), bench.start()] == [0, 1]
    bench.report(0, 0.5, 0.7, 5)
    bench.report(0, 1.0, 0.9, 10)
    bench.end(0, finished=True)
    bench.report(1, 0.6, 0.2, 6)
    bench.end(1)
    assert bench.start() == 2  # the costliest, alone
    bench.search.on_trial_result("#2", {FAILURE: "the loss is not finite at step 3"})
    bench.end(2)
    assert bench.start() == 3
    bench.end(3, error=True)
    assert states(bench) == ["finished", "stopped", "failed", "failed"]
    trials = sweep_record.load_trials(bench.uri)
    assert trials[2].reason == "the loss is not finite at step 3"
    assert trials[3].reason == CRASHED
    assert trials[0].eval_top1 == 0.9 and trials[0].device_seconds == 10
    assert bench.learned == [0, 1, 2, 3]
    assert bench.search.suggest("end") == "FINISHED"


def test_a_run_that_ended_unheard_counts_as_finished(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.start()
    bench.end(0, finished=True)
    trial = sweep_record.load_trials(bench.uri)[0]
    assert (trial.state, trial.progress, trial.eval_top1) == ("finished", 1.0, 0.9)


def test_device_seconds_add_up_over_restarts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.start()
    bench.report(0, 0.2, 0.5, 30)
    bench.report(0, 0.4, 0.6, 60)
    bench.report(0, 0.6, 0.7, 25)  # its workers were started again
    assert sweep_record.load_trials(bench.uri)[0].device_seconds == 85
    again = Bench(tmp_path)
    again.start()
    again.report(0, 0.8, 0.8, 20)
    assert sweep_record.load_trials(bench.uri)[0].device_seconds == 105
    assert again.book.spent == 20  # of this call


def test_a_repeated_epoch_replaces_what_was_said_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.start()
    for reached, top1 in ((0.2, 0.5), (0.4, 0.6), (0.2, 0.55), (0.4, 0.65)):
        bench.report(0, reached, top1, 10)
    curve = sweep_record.load_trials(bench.uri)[0].curve
    assert [(point.reached, point.eval_top1) for point in curve] == [(0.2, 0.55), (0.4, 0.65)]


def test_a_second_call_repeats_nothing_that_is_over_and_resumes_the_rest(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    assert [first.start(), first.start()] == [0, 1]
    first.report(0, 0.6, 0.8, 6)
    first.end(0, finished=True)
    first.report(1, 0.3, 0.5, 3)
    second = Bench(tmp_path)
    assert second.start() == 1  # what ran when the first call was killed
    assert second.start() is None  # the costly one waits for it
    second.report(1, 0.6, 0.7, 3)
    second.end(1, finished=True)
    assert second.start() == 2
    assert second.book.trials[2].settings == second.book.trials[0].settings
    assert second.learned == [0, 1]


def test_rungs_remember_what_an_earlier_call_heard(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.start()
    first.report(0, RUNG, 0.9, 6)
    second = Bench(tmp_path)
    entrant = second.brackets.add("b0", 1)
    assert second.brackets.decide("b0", entrant, told(RUNG, 0.1, 6)) == "STOP"


def test_skipped_trials_are_recorded_and_stay_skipped(tmp_path: Path) -> None:
    tight = Bench(tmp_path, budget=25)
    assert [tight.start(), tight.start()] == [0, 1]
    for number in (0, 1):
        tight.report(number, 1.0, 0.5, 10)
        tight.end(number, finished=True)
    assert tight.start() is None
    assert states(tight) == ["finished", "finished", "skipped", "skipped"]
    rich = Bench(tmp_path, budget=10_000)
    assert rich.start() is None
    assert rich.ladder.done


def test_people_hear_what_is_spent_and_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.start()
    bench.report(0, 0.5, 0.7, 50)
    assert bench.heard[-1].trial.eval_top1 == 0.7
    assert bench.heard[-1].spent == 50
    # Ten times as slow as foreseen: half of this trial, one more, and two of b7.
    assert bench.heard[-1].remaining == pytest.approx(10 * (5 + 10 + 480 + 480))


def test_another_sweep_of_the_same_name_is_refused(tmp_path: Path) -> None:
    sweep_record.create(SWEEP, str(tmp_path))
    sweep_record.create(SWEEP, str(tmp_path))
    other = Sweep(**{**{f: getattr(SWEEP, f) for f in SWEEP.__slots__}, "trials": 5})
    with pytest.raises(RunExistsError, match=r"settings: trials \(recorded 4, requested 5\)"):
        sweep_record.create(other, str(tmp_path))


def test_damaged_records_are_named(tmp_path: Path) -> None:
    sweep_record.write_trial(
        Trial(number=0, variant="b0", settings={}, state="running", run="x"), str(tmp_path)
    )
    file = tmp_path / "trials/000.json"
    for damage in ("{", "[]", "{}", '{"number": 0, "curve": [{"reached": "x"}]}'):
        file.write_text(damage)
        with pytest.raises(StorageError, match=r"000\.json is damaged"):
            sweep_record.load_trials(str(tmp_path))
