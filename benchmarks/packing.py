"""Packing: images per second, packing again, and the memory of a source's index.

    python benchmarks/packing.py [--images 4000] [--files 100000] [--millions 1]

- images/s: `pack` on local 500×375 JPEGs beside bare threads that read and hash the same files,
  and threads that also decode them, as packing does to find damaged images and near duplicates.
  The three take turns; medians. Files are in the page cache.
- again: `pack` and `--data` of an unchanged source of small files, which list and compare it.
- index: the resident memory of a process that lists a source of so many millions of files, at its
  highest, above its imports. The listing is simulated: there are no such files.

Prints tables and, last, one line of JSON.
"""

import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import photographs
import tyro

from effnet_ray import pack, storage
from effnet_ray.data.decode import decode
from effnet_ray.packing import on_demand, sources
from effnet_ray.packing.options import Packing
from effnet_ray.packing.shards import READERS
from effnet_ray.storage import Entry, local


@dataclass(frozen=True)
class Options:
    """The benchmark's options."""

    images: int = 4000
    """JPEGs that are packed."""
    rounds: int = 5
    """Rounds of the first part."""
    files: int = 100_000
    """Small files that are packed again."""
    millions: float = 1.0
    """Million files of the simulated listing."""
    part: str = ""
    """`index`: only measure the index, in this process."""


def read_and_hash(files: list[Path], *, decoding: bool) -> None:
    """Read each file with as many threads as packing has, hash it, and decode it."""

    def read(file: Path) -> str:
        data = file.read_bytes()
        if decoding:
            decode(data)
        return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(READERS) as pool:
        assert all(pool.map(read, files))


def throughput(options: Options, folder: Path) -> dict[str, float]:
    """Median images/s of each contestant."""
    photographs.make(folder / "photos", options.images, 500, 375)
    files = sorted((folder / "photos").rglob("*.jpg"))

    def packed() -> None:
        shutil.rmtree(folder / "packed", ignore_errors=True)
        pack(str(folder / "photos"), str(folder / "packed"))

    contestants: dict[str, Callable[[], None]] = {
        "pack": packed,
        "read and hash": lambda: read_and_hash(files, decoding=False),
        "read, hash and decode": lambda: read_and_hash(files, decoding=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: len(files) / statistics.median(times) for name, times in seconds.items()}


def again(options: Options, folder: Path) -> dict[str, float]:
    """Seconds of packing small files, of packing them again, and of finding them by `--data`."""
    photographs.make(folder / "originals", 200, 16, 12)
    originals = [file.read_bytes() for file in (folder / "originals").rglob("*.jpg")]
    for number in range(options.files):
        data = originals[number % len(originals)]
        target = folder / f"small/class {number % 100:02d}/{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data + number.to_bytes(4, "big"))  # bytes after the image are allowed
    seconds = {}
    source, runs = str(folder / "small"), str(folder / "runs")
    uri = on_demand.find(source, runs).uri
    steps: dict[str, Callable[[], object]] = {
        "first": lambda: on_demand.find(source, runs).make(),
        "pack again": lambda: pack(source, uri),
        "--data again": lambda: on_demand.find(source, runs).is_ready,
    }
    for name, run in steps.items():
        start = time.perf_counter()
        run()
        seconds[name] = round(time.perf_counter() - start, 2)
    return seconds


def index(millions: float) -> dict[str, float]:
    """Memory of this process after and while it lists a source of so many files."""
    count = int(millions * 1e6)

    def entries(uri: str, *, follow_links: bool = False) -> dict[str, Entry]:
        return {
            f"class {number % 1000:03d}/image {number:08d}.jpg": Entry(100_000 + number, 0.0)
            for number in range(count)
        }

    local.entries = entries
    storage.folders = lambda uri: []
    before, start = resident_mb(), time.perf_counter()
    listing = sources.list_images("/photos", Packing(), "/out", map)
    assert len(listing.images) == count
    seconds = time.perf_counter() - start
    peak = resident_mb() - before
    return {
        "seconds": round(seconds, 1),
        "table_mb": round(listing.images.nbytes / 2**20),
        "peak_mb": round(peak),
    }


def resident_mb() -> float:
    """Resident memory of this process at its highest, MB (getrusage's is also its parent's)."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main(options: Options) -> None:
    """Measure and print."""
    if options.part == "index":
        print(json.dumps(index(options.millions)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rates = throughput(options, Path(folder))
    print("| | images/s | pack ÷ |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rates['pack'] / rate:.2f} |")
    with tempfile.TemporaryDirectory() as folder:
        seconds = again(options, Path(folder))
    print(f"\n| {options.files:,} small files | s |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value} |")
    command = [sys.executable, __file__, "--part", "index", "--millions", str(options.millions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    print(f"\nindex of {options.millions:g} million files: {measured}")
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    versions = {name: version(name) for name in ("pyarrow", "pillow", "simplejpeg")}
    print(json.dumps({**rates, **seconds, **measured, **machine, **versions}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
