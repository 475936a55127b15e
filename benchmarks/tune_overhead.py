"""What Ray Tune itself takes, set as our sweeps set it.

    python benchmarks/tune_overhead.py [--trials 100] [--seconds 5] [--concurrent 2]

Plain functions that only sleep go through the sweep's own ladder, brackets and Tune settings, on
a local Ray of this machine. Ideal is trials × seconds / concurrent. Then four real trials, one
after the other: a B0 of two workers on the sample data. A trial's start is the time from its being
handed out to its first report, less what its workers counted as their own. Prints, last, one line
of JSON: the wall time over the ideal one, what a function costs beside its own seconds, and the
seconds of the real trials' starts.
"""

import json
import math
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import ray
import tyro
from ray import tune

from effnet_ray import Placement, Recipe
from effnet_ray.packing.sample import pack_sample
from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.sweep import tune as sweep
from effnet_ray.sweep.asha import PROGRESS, SPENT, TOP1, Brackets
from effnet_ray.sweep.scheduled_search import ScheduledSearch
from effnet_ray.sweep.trial import run_trials
from effnet_ray.sweep.trial_log import SweepProgress
from effnet_ray.sweep.tune import SweepStarted
from effnet_ray.sweep.variant_schedule import VariantSchedule

WORKERS = 2
"""Of a real trial."""


@dataclass(frozen=True)
class Flags:
    """What is run."""

    trials: int = 100
    """functions"""
    seconds: float = 5.0
    """each function sleeps"""
    concurrent: int = 2
    """side by side"""


class NoBook:
    """Keeps no account: only Tune is measured."""

    def __init__(self, ladder: VariantSchedule) -> None:
        self._ladder = ladder

    def replay(self, number: int) -> bool:
        """None is."""
        return False

    def start(self, number: int, variant: str, settings: dict[str, Any]) -> None:
        """A trial is handed out."""

    def report(self, number: int, report: dict[str, Any]) -> None:
        """A trial reports."""

    def end(self, number: int, *, crashed: bool) -> None:
        """A trial is over."""
        assert not crashed
        self._ladder.record_end(number)

    def record_skipped(self) -> None:
        """None is skipped."""


def plain(flags: Flags) -> float:
    """Seconds that the functions take."""
    ladder = VariantSchedule(
        {"b0": flags.seconds}, flags.trials, lambda number: {"number": number}
    )
    seconds = flags.seconds

    def sleep(config: dict[str, Any]) -> None:
        time.sleep(seconds)
        tune.report({PROGRESS: 1.0, TOP1: 0.5, SPENT: seconds})

    start = time.perf_counter()
    run_trials(sleep, ScheduledSearch(ladder, NoBook(ladder)), Brackets(), flags.concurrent)
    assert ladder.done and len(ladder.planned) == flags.trials
    return time.perf_counter() - start


def starts(folder: str) -> list[float]:
    """Seconds from a real trial's being handed out to its workers' first step."""
    begun, result = dict[int, float](), dict[int, float]()

    def on_event(event: SweepStarted | SweepProgress | WaitingForWorkers) -> None:
        if not isinstance(event, SweepProgress):
            return
        trial, now = event.trial, time.perf_counter()
        begun.setdefault(trial.number, now)
        if trial.curve:
            took = now - begun[trial.number] - trial.device_seconds / WORKERS
            result.setdefault(trial.number, took)

    pack_sample(f"{folder}/digits")
    recipe = Recipe(weights="none", image_size=32, epochs=1, batch_size=16, limit=160)
    sweep.tune(
        recipe, Placement(workers=str(WORKERS)), f"{folder}/digits", variants=["b0"], trials=4,
        runs=f"{folder}/runs", workers=str(WORKERS), on_progress=on_event,
        connect=lambda placement: None,
    )  # fmt: skip
    return [result[number] for number in sorted(result)]


def main(flags: Flags) -> None:
    """Run both."""
    ray.init(num_cpus=os.cpu_count(), include_dashboard=True, log_to_driver=False)
    rounds = math.ceil(flags.trials / flags.concurrent)
    ideal, wall = rounds * flags.seconds, plain(flags)
    with tempfile.TemporaryDirectory(prefix="effnet-benchmark-") as folder:
        real = starts(folder)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Ray {ray.__version__}")
    print(f"{flags.trials} functions of {flags.seconds:g} s, {flags.concurrent} side by side: "
          f"{wall:.1f} s, ideally {ideal:.1f} s")  # fmt: skip
    print("starts of real trials:", ", ".join(f"{took:.1f} s" for took in real))
    answer = {
        "vs_ideal": round(wall / ideal, 3),
        "seconds_per_trial": round((wall - ideal) / rounds, 2),
        "real_starts": [round(took, 1) for took in real],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(tyro.cli(Flags))
