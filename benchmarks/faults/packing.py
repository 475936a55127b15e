"""Packing with SIGKILLs at random moments, again and again until it is done."""

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from effnet_ray import storage
from effnet_ray.data.manifest import load
from effnet_ray.packing.sample import write_images

JOB = Path(__file__).parents[2] / "jobs" / "pack.py"
SECONDS = (0.5, 6.0)
"""Bounds of the seconds before a kill. Chosen, not measured."""
MOST_KILLS = 5


def run_all(runs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Disturb the packings that are not done yet; yields what became of each."""
    images, undisturbed = scratch / "images", scratch / "undisturbed"
    write_images(images)
    _pack(images, undisturbed, None)
    expected = _content(undisturbed)
    for number in sorted(set(range(runs)) - set(done)):
        out, draws, kills = scratch / f"out-{number}", random.Random(number), 0
        limit = draws.randint(1, MOST_KILLS)
        while not _pack(images, out, draws.uniform(*SECONDS) if kills < limit else None):
            kills += 1
        failure = "" if _content(out) == expected else "another data set"
        yield {"run": number, "failure": failure, "kills": kills}
        shutil.rmtree(out)


def _pack(images: Path, out: Path, seconds: float | None) -> bool:
    """Pack until killed after `seconds`; whether it came to its end."""
    flags = ["--source", str(images), "--out", str(out), "--eval-fraction", "0.2"]
    process = subprocess.Popen(
        [sys.executable, str(JOB), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def _content(folder: Path) -> tuple[str, dict[str, str]]:
    """The fingerprint, all files, and what is in tables; the others name the folder."""
    contents = {
        path: hashlib.sha256((folder / path).read_bytes()).hexdigest() if _is_table(path) else ""
        for path in storage.sizes(str(folder))
    }
    return load(str(folder)).fingerprint, contents


def _is_table(path: str) -> bool:
    return path.endswith(".parquet")
