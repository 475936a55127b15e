"""Watches which steps a run takes, and when, by the files of its audit."""

import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.train import Kill

PAUSE_S = 0.05
"""Between two looks."""
OUTLIVED_S = 10.0
"""Seconds after a kill in which the run may go on as if nothing had happened: workers outlive
their driver by a moment. Chosen, not measured."""
STALL_S = 3.0
"""A longer time without a new step is a stall. Chosen, not measured."""


class StepWatch:
    """Looks at an audit's folder again and again, in a thread.

    `taken` counts steps, those that were taken again among them.
    """

    def __init__(self, audit: Path) -> None:
        self._audit, self._stop = audit, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.start = time.monotonic()
        self._files = set[tuple[str, int]]()
        self._highest: list[tuple[float, int]] = []
        """When the run was further than ever, and at which step."""

    def __enter__(self) -> "StepWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def step(self) -> int:
        """The furthest step so far; -1: none."""
        return self._highest[-1][1] if self._highest else -1

    @property
    def taken(self) -> int:
        """Steps of worker 0, which every step has."""
        return len(self._files)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            self._look()
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        for path in self._audit.glob("step-*-rank-0000*"):
            try:
                self._files.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
            step = int(path.name[5:13])
            if not self._highest or step > self._highest[-1][1]:
                self._highest.append((now, step))

    def settle(self, kills: "Sequence[Kill]") -> None:
        """Fill in how long each kill kept the run from a step that had not been taken before."""
        for kill in kills:
            kill.recovered_s = self._recovered(self.start + kill.at_s)

    def _recovered(self, killed: float) -> float:
        """Seconds from a kill to the end of the stall that it caused; 0: it caused none."""
        times = [at for at, _ in self._highest if at > killed]
        for before, after in pairwise([killed, *times]):
            if before - killed > OUTLIVED_S:
                break
            if after - before > STALL_S:
                return round(after - killed, 2)
        return 0.0
