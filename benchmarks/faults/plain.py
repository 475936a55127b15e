"""The comparison: plain Ray Train under the same kills as `faults.train`."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.laws import RECIPE, STEPS

from effnet_ray.packing.sample import pack_sample
from faults.disturb import Disturbed, Job, disturb
from faults.machines import machines
from faults.steps import StepWatch
from faults.train import EPOCHS, PLACES, places

JOB = Path(__file__).parent / "plain_job.py"


def plain_job(place: str, audit: Path, env: dict[str, str]) -> Job:
    """`plain_job.py` with its data and storage at `place`."""

    def start(address: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(JOB), f"{place}/digits", f"{place}/runs", str(audit)],
            text=True, env={**env, "RAY_ADDRESS": address},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def run_all(runs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Disturb the runs that are not done yet; yields what became of each."""
    digits = scratch / "digits"
    pack_sample(str(digits))
    for number in set(range(runs)) - set(done):
        kind, folder = PLACES[number % len(PLACES)], scratch / f"run-{number}"
        run, failure, audit = Disturbed(), "", folder / "audit"
        try:
            with places(kind, folder, digits) as place, machines() as cluster:
                job = plain_job(place.uri, audit, dict(os.environ))
                with StepWatch(audit) as watch:
                    disturb(run, job, cluster, watch, random.Random(number))
        except RuntimeError as error:
            failure = str(error)
        yield {
            "run": number, "place": kind, "failure": failure, **run.record(),
            "wasted_steps": watch.taken - EPOCHS * STEPS, **count(audit),
        }  # fmt: skip
        shutil.rmtree(folder)


def count(audit: Path) -> dict[str, int]:
    """How often images were used too often or not at all, summed over epochs."""
    epochs: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(EPOCHS)}
    for path in audit.glob("step-*.json"):
        step = json.loads(path.read_text())
        epochs[step["epoch"]].update(step["ids"])
    return {
        "duplicates": sum(times - 1 for used in epochs.values() for times in used.values()),
        "misses": sum(RECIPE.limit - len(used) for used in epochs.values()),
    }
