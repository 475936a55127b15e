"""Kills, crashes and faults at the counts that `benchmarks/results/chaos.md` reports.

    python benchmarks/chaos.py train --runs 100
    python benchmarks/chaos.py table

Every arm appends a line of JSON per run to `benchmarks/results/chaos/ARM.jsonl` and skips the runs
that stand there, so it can be stopped and started again. `table` writes `results/chaos.md` from
these lines. All servers, clusters and folders are temporary, and on this machine alone.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # support: servers, faults, the run of the laws
RESULTS = Path(__file__).parent / "results" / "chaos"
Arm = Callable[[int, Sequence[int], Path], Iterator[dict[str, Any]]]


def train(runs: int = 100) -> None:
    """Fine-tuning with one to five SIGKILLs per run."""
    from faults.train import run_all

    _record("train", runs, run_all)


def plain(runs: int = 25) -> None:
    """Plain Ray Train under the same kills."""
    from faults.plain import run_all

    _record("plain", runs, run_all)


def publish(runs: int = 250) -> None:
    """Rounds of 16 publishers at once, of which half crash, on disk and S3."""
    from faults.publishing import run_all

    _record("publish", runs, run_all)


def pack(runs: int = 40) -> None:
    """Packings with up to five SIGKILLs each."""
    from faults.packing import run_all

    _record("pack", runs, run_all)


def sweep(runs: int = 30) -> None:
    """Sweeps with up to three SIGKILLs each."""
    from faults.sweeps import run_all

    _record("sweep", runs, run_all)


def serve(runs: int = 20) -> None:
    """Servers under load: killed processes, a damaged release, a store that is gone."""
    from faults.serving import run_all

    _record("serve", runs, run_all)


def leak(epochs: int = 300) -> None:
    """A run of many epochs: what grows in its processes and folders."""
    from faults.leak import run_all

    _record("leak", epochs, run_all)


def table() -> None:
    """Write results/chaos.md from the recorded runs."""
    from faults.report import write

    write(RESULTS, RESULTS.with_suffix(".md"))


def _record(name: str, runs: int, arm: Arm) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = [json.loads(line)["run"] for line in lines]
    with tempfile.TemporaryDirectory(prefix="effnet-chaos-") as scratch:
        for result in arm(runs, done, Path(scratch)):
            line = json.dumps(result)
            print(line, flush=True)
            with path.open("a") as file:
                print(line, file=file)


if __name__ == "__main__":
    commands = {
        "train": train, "plain": plain, "publish": publish, "pack": pack, "leak": leak,
        "serve": serve,
        "sweep": sweep,
        "table": table,
    }  # fmt: skip
    tyro.extras.subcommand_cli_from_dict(commands)
