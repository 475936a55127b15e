"""What Ray Tune itself takes, set as our sweeps set it.

    python benchmarks/tune_overhead.py [--trials 100] [--seconds 5] [--concurrent 2]

Plain functions that only sleep go through the sweep's own ladder, brackets and Tune settings, on
a local Ray of this machine. Ideal is trials × seconds / concurrent. Prints, last, one line of
JSON: the wall time over the ideal one, and what a trial costs beside its own seconds.
"""

import json
import math
import os
import platform
import time
from dataclasses import dataclass
from typing import Any

import ray
import tyro
from ray import tune

from effnet_ray.sweep.ladder import Ladder
from effnet_ray.sweep.schedule import REACHED, SPENT, TOP1, Brackets, LadderSearch
from effnet_ray.sweep.trial import run_trials


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

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder

    def recorded(self, number: int) -> bool:
        """None is."""
        return False

    def begins(self, number: int, variant: str, settings: dict[str, Any]) -> None:
        """A trial is handed out."""

    def hears(self, number: int, report: dict[str, Any]) -> None:
        """A trial reports."""

    def ends(self, number: int, *, crashed: bool) -> None:
        """A trial is over."""
        assert not crashed
        self._ladder.ended(number)

    def skips(self) -> None:
        """None is skipped."""


def main(flags: Flags) -> None:
    """Run it."""
    ray.init(num_cpus=os.cpu_count(), include_dashboard=True, log_to_driver=False)
    ladder = Ladder({"b0": flags.seconds}, flags.trials, lambda number: {"number": number})
    seconds = flags.seconds

    def sleep(config: dict[str, Any]) -> None:
        time.sleep(seconds)
        tune.report({REACHED: 1.0, TOP1: 0.5, SPENT: seconds})

    start = time.perf_counter()
    run_trials(sleep, LadderSearch(ladder, NoBook(ladder)), Brackets(), flags.concurrent)
    wall = time.perf_counter() - start
    assert ladder.done and len(ladder.tries) == flags.trials
    rounds = math.ceil(flags.trials / flags.concurrent)
    ideal = rounds * seconds
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"Ray {ray.__version__}")  # fmt: skip
    print(f"{flags.trials} functions of {seconds:g} s, {flags.concurrent} side by side: "
          f"{wall:.1f} s, ideally {ideal:.1f} s")  # fmt: skip
    answer = {
        "vs_ideal": round(wall / ideal, 3),
        "seconds_per_trial": round((wall - ideal) / rounds, 2),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(tyro.cli(Flags))
