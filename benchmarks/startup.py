"""Time of commands that only answer: help, a refused flag, the list of a local store.

    python benchmarks/startup.py [--rounds 7]

Each command is a process of its own. Commands take turns with `python -c "import torch"`. Medians
of wall time and of CPU time (user and system) are printed, and their ratio to its medians. CPU
time depends less on what else the machine does. The last line is JSON.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
JOBS = ("pack", "finetune", "tune", "evaluate", "predict", "serve", "models", "check")
REFERENCE = "import torch"


@dataclass(frozen=True)
class Options:
    """The benchmark's options."""

    rounds: int = 7
    """Runs of each command."""


def commands(store: str) -> dict[str, list[str]]:
    """Name → command line."""
    jobs = {f"{job} --help": [f"jobs/{job}.py", "--help"] for job in JOBS}
    return {
        REFERENCE: ["-c", REFERENCE],
        "import tyro": ["-c", "import tyro"],
        **jobs,
        "finetune --epoch 3 (refused)": ["jobs/finetune.py", "--epoch", "3"],
        "models list": ["jobs/models.py", "list", "--store", store],
    }


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall time and CPU time of a process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(options: Options) -> None:
    """Run it."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as store:
        lines = commands(store)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
        for command in lines.values():  # compiled files, the page cache
            seconds(command)
        for _ in range(options.rounds):
            for name, command in lines.items():
                times[name].append(seconds(command))
    wall = {name: statistics.median(w for w, _ in values) for name, values in times.items()}
    cpu = {name: statistics.median(c for _, c in values) for name, values in times.items()}
    for name in times:
        print(
            f"{name:<30} {wall[name]:6.2f} s wall  {wall[name] / wall[REFERENCE]:5.2f} ×  "
            f"{cpu[name]:6.2f} s CPU  {cpu[name] / cpu[REFERENCE]:5.2f} ×"
        )
    facts = {
        "wall_vs_torch": {name: round(s / wall[REFERENCE], 3) for name, s in wall.items()},
        "cpu_vs_torch": {name: round(s / cpu[REFERENCE], 3) for name, s in cpu.items()},
        "wall_s": {name: round(s, 3) for name, s in wall.items()},
        "cpu_s": {name: round(s, 3) for name, s in cpu.items()},
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "tyro", "rich")},
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(tyro.cli(Options))
