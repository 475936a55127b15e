"""Sweeps whose driver, trials and controllers are killed, against one that was left alone."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from effnet_ray import storage
from effnet_ray.packing.sample import pack_sample
from effnet_ray.release.store import ModelStore
from effnet_ray.sweep import sweep_record
from effnet_ray.train import run_record
from faults.machines import marked, marking

JOB = Path(__file__).parents[2] / "jobs" / "tune.py"
NAME = "sweep"
FLAGS = [
    "--local", "--limit", "64", "--epochs", "3", "--batch-size", "16", "--lr", "log:1e-3:1e-2",
    "--variants", "b0", "--trials", "3", "--workers", "2", "--image-size", "32", "--seed", "0",
    "--batchnorm", "frozen", "--cores", "1",
]  # fmt: skip
KINDS = {"trial": "ray::ImplicitFunc", "controller": "ray::TrainController", "driver": ""}
ABSENT_S = 60.0
"""Seconds to wait for a process of the drawn kind; after that the driver is killed instead."""
PAUSES_S = (10.0, 45.0)
"""Bounds of the seconds before a kill. Chosen, not measured."""
MOST_KILLS = 3
LIMIT_S = 1800.0


def run_all(runs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Disturb the sweeps that are not done yet; yields what became of each."""
    pack_sample(str(scratch / "digits"))
    _sweep(scratch / "undisturbed", scratch / "digits", random.Random(0), kills=0)
    expected = _leaderboard(scratch / "undisturbed")
    for number in sorted(set(range(runs)) - set(done)):
        folder, draws, failure = scratch / f"sweep-{number}", random.Random(number), ""
        kills: list[str] = []
        try:
            kills = _sweep(folder, scratch / "digits", draws, draws.randint(1, MOST_KILLS))
            _check(folder, expected)
        except (AssertionError, RuntimeError) as error:
            failure = f"{type(error).__name__}: {error}"
        yield {"run": number, "failure": failure, "kills": kills}
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path, data: Path, draws: random.Random, kills: int) -> list[str]:
    """Sweep to the end, starting again after every kill of the driver; the kinds of kills."""
    command = [
        sys.executable, str(JOB), *FLAGS, "--data", str(data), "--runs", f"{folder}/runs",
        "--store", f"{folder}/store", "--name", NAME,
    ]  # fmt: skip
    killed, before = list[str](), dict[str, int]()
    start, due = time.monotonic(), time.monotonic() + draws.uniform(*PAUSES_S)
    coming = draws.choice(sorted(KINDS))
    with marking() as mark:
        driver = _started(command)
        while driver.poll() != 0:
            if driver.returncode is not None:  # it was killed, or says to run it again
                driver = _started(command)
            late = time.monotonic() - due
            if len(killed) < kills and late > 0:
                before |= _results(folder)
                kind = _kill(coming, driver, mark, draws, or_driver=late > ABSENT_S)
                if kind:
                    killed.append(kind)
                    coming = draws.choice(sorted(KINDS))
                    due = time.monotonic() + draws.uniform(*PAUSES_S)
            if time.monotonic() - start > LIMIT_S:
                driver.kill()
                raise RuntimeError(f"not done after {LIMIT_S:g} s")
            time.sleep(0.3)
    now = _results(folder)
    again = [path for path, written in before.items() if now.get(path) != written]
    assert not again, f"trained again, or lost: {again}"
    return killed


def _started(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """A driver, marked by this process's environment."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=dict(os.environ), stdout=quiet, stderr=quiet)


def _results(folder: Path) -> dict[str, int]:
    """When the result of each finished trial was written."""
    files = folder.glob(f"runs/{NAME}/runs/*/{run_record.RESULT}")
    return {str(path): path.stat().st_mtime_ns for path in files}


def _kill(
    kind: str,
    driver: "subprocess.Popen[bytes]",
    mark: str,
    draws: random.Random,
    *,
    or_driver: bool,
) -> str | None:
    """SIGKILL a process of the kind; return the kind of what was killed, None if there is none.

    `or_driver`: the driver, if there is none.
    """
    processes = [each for each in marked(mark) if KINDS[kind] and _title(each) == KINDS[kind]]
    if processes:
        draws.choice(processes).kill()
        return kind
    if KINDS[kind] and not or_driver:
        return None
    driver.kill()
    driver.wait()
    return "driver"


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()).partition(".")[0]
    except psutil.Error:
        return ""


def _leaderboard(folder: Path) -> dict[int, Any]:
    """What is recorded of every trial but its times."""
    trials = sweep_record.load_trials(f"{folder}/runs/{NAME}")
    return {
        number: (
            trial.variant, trial.settings, trial.state, trial.reason,
            [(point.reached, point.eval_top1) for point in trial.curve],
        )
        for number, trial in trials.items()
    }  # fmt: skip


def _check(folder: Path, expected: dict[int, Any]) -> None:
    """Raises AssertionError unless all is as in the undisturbed sweep."""
    board = _leaderboard(folder)
    pairs = {number: (board.get(number), expected.get(number)) for number in {*board, *expected}}
    different = {number: pair for number, pair in pairs.items() if pair[0] != pair[1]}
    assert not different, f"other trials: {different}"
    runs = storage.folders(f"{folder}/runs/{NAME}/runs")
    assert len(runs) == len(expected), f"runs of {len(expected)} trials: {runs}"
    assert ModelStore(f"{folder}/store").models()
