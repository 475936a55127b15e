"""What planning costs on a data set of any size: time and memory besides reading and decoding.

    python benchmarks/bookkeeping.py [--millions 1.3 13 100]

Makes the manifest of so many images, in shards of 10,000 and row groups of 64, but no images.
Three fresh processes use it: one reads it as a driver does, one resumes at the last step of an
epoch as a worker does, one plans chunks as decode tasks do: unpickle the data set, choose the
chunk's rows, and find the shard of each row group. Prints a table.
"""

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from effnet_ray import Recipe
from effnet_ray.data import manifest as manifests, row_group
from effnet_ray.data.chunks import Block, ChunkTask, Dataset
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.stream import Stream
from effnet_ray.variants import VARIANTS

SHARD_GROUPS, GROUP_IMAGES = 156, 64
CHUNKS = 20
SPEC = VARIANTS["b0"].input_spec("ns")
RECIPE = Recipe(variant="b0", weights="none", epochs=3, batch_size=512, micro_batch=64).resolved(
    SPEC, workers=8, on_gpu=True
)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    millions: tuple[float, ...] = (1.3, 13.0, 100.0)
    """Train images of each data set, millions."""
    part: str = ""
    """Used by the benchmark itself: the process to be."""
    data: Path = Path()
    """Used by the benchmark itself: the data set's folder."""


def main(options: Options) -> None:
    """Measure and print, or be one of the processes."""
    if options.part:
        process = {"driver": driver, "worker": worker, "task": task}[options.part]
        print(json.dumps(process(options.data)))
        return
    print("| million images | row groups | process | s to start | MB | ms a chunk | ms an image |")
    print("|---|---|---|---|---|---|---|")
    for millions in options.millions:
        with tempfile.TemporaryDirectory() as folder:
            groups = write_manifest(Path(folder), int(millions * 1e6))
            for part in ("driver", "worker", "task"):
                row = measure(part, folder)
                cells = [row.get(name, "") for name in ("seconds", "mb", "chunk_ms", "image_ms")]
                print("|", " | ".join(map(str, [millions, groups, part, *cells])), "|", flush=True)


def write_manifest(data: Path, images: int) -> int:
    """Write manifest and pickled data set; returns the number of train row groups."""
    groups = images // GROUP_IMAGES
    shards = tuple(
        Shard(
            path=f"train/{first:08d}.parquet",
            row_groups=(GROUP_IMAGES,) * min(SHARD_GROUPS, groups - first),
            bytes=10**9, sha256=f"{first:064x}",
        )
        for first in range(0, groups, SHARD_GROUPS)
    )  # fmt: skip
    manifest = Manifest(classes=("cat", "dog"), splits={"train": shards, "eval": shards[:1]})
    manifests.write(manifest, str(data))
    (data / "dataset.pickle").write_bytes(pickle.dumps(Dataset(manifest, str(data), RECIPE, SPEC)))
    return groups


def measure(part: str, data: str) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--part", part, "--data", data, "--millions", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def peak_mb(before: int) -> int:
    """Resident memory of this process above that of its imports, at its highest, MB."""
    return (psutil.Process().memory_info().rss - before) // 2**20


def driver(data: Path) -> dict[str, float]:
    """Read the manifest, count its images and name the plan."""
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    manifest = manifests.load(str(data))
    dataset = Dataset(manifest, str(data), RECIPE, SPEC)
    assert manifest.images["train"] == dataset.plan.images
    pickle.dumps(dataset)
    return {"seconds": round(time.perf_counter() - start, 2), "mb": peak_mb(before)}


def worker(data: Path) -> dict[str, float]:
    """Start a stream at the last step of an epoch, until its first chunk is to be loaded."""
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    dataset = pickle.loads((data / "dataset.pickle").read_bytes())

    def first_chunk(dataset: Dataset, tasks: Iterator[ChunkTask]) -> Iterator[Block]:
        first = next(tasks)
        plan_chunk(dataset, first)
        yield {}

    Stream(
        dataset, rank=0, workers=1, first_step=2 * dataset.plan.steps_per_epoch - 1,
        execute=lambda dataset, tasks: iter(list(first_chunk(dataset, tasks))),
    )  # fmt: skip
    return {"seconds": round(time.perf_counter() - start, 2), "mb": peak_mb(before)}


def task(data: Path) -> dict[str, float]:
    """Plan chunks, each with the data set unpickled anew, as in a task of Ray Data."""
    raw, seconds, images = (data / "dataset.pickle").read_bytes(), list[float](), 0
    before = psutil.Process().memory_info().rss
    for chunk in range(CHUNKS + 1):
        start = time.perf_counter()
        images = plan_chunk(pickle.loads(raw), ChunkTask("train", 1, 3, chunk, 0))
        seconds.append(time.perf_counter() - start)
    first, *rest = seconds
    per_chunk = 1000 * sum(rest) / len(rest)
    return {
        "seconds": round(first, 2), "mb": peak_mb(before),
        "chunk_ms": round(per_chunk, 2), "image_ms": round(per_chunk / images, 4),
    }  # fmt: skip


def plan_chunk(dataset: Dataset, task: ChunkTask) -> int:
    """Choose the rows of a chunk and find their row groups; the number of its images."""
    rows = dataset.plan.chunk(task.epoch, task.lane, task.chunk, skip_steps=task.skip_steps)
    for group in sorted(set(rows[:, 0].tolist())):
        RowGroup(dataset.manifest, dataset.data, "train", group, limited=False)
    return len(rows)


if __name__ == "__main__":
    row_group.read_twice = lambda read, reread: None  # type: ignore[assignment]  # no storage
    main(tyro.cli(Options, description=__doc__))
