"""Runs a job to its end while random processes of it are killed at random moments."""

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from faults.machines import KINDS, Machines
from faults.steps import StepWatch

Job = Callable[[str], "subprocess.Popen[str]"]
"""Starts a run's driver, or starts it again, on the cluster at an address."""

PAUSES_S = (0.5, 20.0)
"""Bounds of the seconds before the next kill; many such kills come before the first step."""
PAUSES_STEPS = (1, 30)
"""Bounds of the steps before the next kill; half of all kills wait for steps instead."""
ABSENT_S = 40.0
"""Seconds to wait for a process of the drawn kind, longer than a driver takes to its first step;
after that the driver is killed instead."""
LATEST_STEP = 45
"""At this step, of 60, a run without a kill gets one: the driver's, if there is no process of the
drawn kind."""
ATTEMPTS = 12
"""Times that the same command is run."""
MESSAGE = 120
"""Characters of an error that the results keep."""
LIMIT_S = 1200.0
"""Seconds of a run after which it counts as hung."""


@dataclass
class Kill:
    """A SIGKILL, and what it cost."""

    kind: str
    at_s: float
    """Since the start of the run."""
    recovered_s: float = 0
    """How long it kept the run from a step that had not been taken before."""


@dataclass
class Disturbed:
    """What became of a run."""

    kills: list[Kill] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0
    output: str = ""
    """The last attempt's, stdout."""
    messages: list[str] = field(default_factory=list)
    """The last lines on stderr of the attempts that failed by themselves."""

    def record(self) -> dict[str, Any]:
        """What the results keep."""
        kept = asdict(self)
        del kept["output"]
        return kept


class NextKill:
    """What is killed next, and when."""

    def __init__(self, draws: random.Random, step: int) -> None:
        """`step`: the furthest step of the run so far."""
        self.kind = draws.choice(KINDS)
        self._time, self._step = time.monotonic(), -1
        if draws.random() < 0.5:
            self._time += draws.uniform(*PAUSES_S)
        else:
            self._step = step + draws.randint(*PAUSES_STEPS)
        self._due: float | None = None

    def is_due(self, step: int) -> bool:
        """Whether its time and its step have come."""
        now = time.monotonic()
        if self._due is None and now >= self._time and step >= self._step:
            self._due = now
        return self._due is not None

    @property
    def waits_too_long(self) -> bool:
        """Whether no process of the kind has come to life since it was due."""
        return self._due is not None and time.monotonic() - self._due > ABSENT_S


def disturb(
    run: Disturbed, job: Job, cluster: Machines, watch: StepWatch, draws: random.Random
) -> None:
    """Run a job to its end, starting it again as often as it fails or is killed.

    Raises RuntimeError if it is not done after `ATTEMPTS` or `LIMIT_S`.
    """
    start = watch.start
    planned = draws.randint(1, 5)
    coming = NextKill(draws, watch.step)
    driver: subprocess.Popen[str] | None = None
    while driver is None or driver.poll() != 0:
        if driver is None or driver.returncode is not None:
            driver = _start_again(run, job, cluster, driver)
        if time.monotonic() - start > LIMIT_S:
            driver.kill()
            raise RuntimeError(f"not done after {LIMIT_S:g} s")
        late = not run.kills and watch.step >= LATEST_STEP
        if len(run.kills) < planned and (coming.is_due(watch.step) or late):
            at_s = round(time.monotonic() - start, 2)
            kind = _kill(coming, cluster, driver, draws, or_driver=late)
            if kind:
                run.kills.append(Kill(kind, at_s))
                coming = NextKill(draws, watch.step)
        time.sleep(0.02)
    run.output, run.seconds = driver.communicate()[0], round(time.monotonic() - start, 1)
    watch.settle(run.kills)


def _start_again(
    run: Disturbed, job: Job, cluster: Machines, ended: "subprocess.Popen[str] | None"
) -> "subprocess.Popen[str]":
    if ended is not None:
        errors = ended.communicate()[1]
        if ended.returncode > 0:
            run.messages.append((errors.strip().splitlines() or [""])[-1][:MESSAGE])
    if run.attempts == ATTEMPTS:
        raise RuntimeError(f"not done after {ATTEMPTS} attempts: {run.messages}")
    run.attempts += 1
    return job(cluster.address)


def _kill(
    coming: NextKill,
    cluster: Machines,
    driver: "subprocess.Popen[str]",
    draws: random.Random,
    *,
    or_driver: bool,
) -> str | None:
    """SIGKILL a process; return the kind of what was killed, None if there is none yet.

    `or_driver`: the driver if there is none, without waiting for one.
    """
    if coming.kind == "raylet":
        cluster.kill_machine(draws)
        return coming.kind
    if coming.kind != "driver":
        processes = cluster.processes(coming.kind)
        if processes:
            try:
                draws.choice(processes).kill()
            except psutil.NoSuchProcess:
                return None
            return coming.kind
        if not (coming.waits_too_long or or_driver):
            return None
    driver.kill()
    driver.wait()
    return "driver"
