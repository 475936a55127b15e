"""What waiting for object storage costs a decode task, with and without reading ahead.

    python benchmarks/read_ahead.py [--images 2000] [--delay-ms 50] [--rounds 3]

One process loads all chunks of an epoch of 500×375 JPEGs from disk, and from an S3 server (rclone)
behind a proxy on this machine, which delays every request. "lazy" reads a row group when its first
image is needed, as before there was `data/row_group_reads`. Server and proxy share the cores with
the contestants: compare S3 with a delay to S3 without. Prints medians of interleaved rounds.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import photographs
import tyro

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.faults import Proxy, proxy
from support.servers import KEY, SECRET, rclone_server

from effnet_ray import Packing, Recipe, pack
from effnet_ray.data import chunks, manifest as manifests, parquet_reads
from effnet_ray.data.chunks import ChunkTask, Dataset, load_chunks
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.row_group_reads import RowGroupReads
from effnet_ray.variants import VARIANTS

SPEC = VARIANTS["b0"].input_spec("ns")
RECIPE = Recipe(weights="none", batch_size=64, micro_batch=64).resolved(
    SPEC, workers=1, on_gpu=False
)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    images: int = 2000
    """JPEGs"""
    delay_ms: float = 50.0
    """Added to every request."""
    rounds: int = 3
    """Rounds of each contestant"""


class LazyReads(RowGroupReads):
    """Reads a row group when it is needed."""

    def start(self, split: str, groups: Iterable[int]) -> Any:
        """Row groups that are read by `result`."""
        return {
            group: _Lazy(self._manifest, self._data, split, group, self._limited)
            for group in groups
        }


@dataclass
class _Lazy:
    manifest: manifests.Manifest
    data: str
    split: str
    group: int
    limited: bool

    @cached_property
    def _read(self) -> RowGroup:
        return RowGroup(self.manifest, self.data, self.split, self.group, limited=self.limited)

    def result(self) -> RowGroup:
        """Read it, the first time."""
        return self._read


def rate(data: str, reads: type[RowGroupReads]) -> float:
    """Images per second of an epoch, the footers not cached."""
    chunks.RowGroupReads = reads  # type: ignore[misc]
    parquet_reads.forget_footers()
    dataset = Dataset(manifests.load(data), data, RECIPE, SPEC)
    tasks = (
        ChunkTask("train", 0, 0, chunk, 0, view=0)
        for chunk in range(dataset.plan.chunks_per_epoch)
    )
    start = time.perf_counter()
    images = sum(len(block["label"]) for block in load_chunks(dataset, tasks))
    return images / (time.perf_counter() - start)


def measure(folder: Path, server: Proxy, options: Options) -> dict[str, float]:
    """Median images per second of each contestant."""
    disk, s3 = str(folder / "bucket/data"), "s3://bucket/data"

    def delayed(data: str, seconds: float, reads: type[RowGroupReads]) -> float:
        def hits(method: str, path: str) -> bool:
            time.sleep(seconds)
            return False

        server.faults.kinds, server.faults.hits = ("503 SlowDown",), hits
        return rate(data, reads)

    delay = options.delay_ms / 1000
    contestants: dict[str, Callable[[], float]] = {
        "disk": lambda: rate(disk, RowGroupReads),
        "S3": lambda: delayed(s3, 0.0, RowGroupReads),
        "S3, delayed": lambda: delayed(s3, delay, RowGroupReads),
        "disk, lazy": lambda: rate(disk, LazyReads),
        "S3, lazy": lambda: delayed(s3, 0.0, LazyReads),
        "S3, delayed, lazy": lambda: delayed(s3, delay, LazyReads),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            rates[name].append(contestant())
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def main(options: Options) -> None:
    """Pack, serve and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        photographs.make(folder / "images", options.images, 500, 375)
        pack(str(folder / "images"), str(folder / "bucket/data"), Packing(eval_fraction=0.05))
        with rclone_server(folder) as upstream, proxy(upstream) as server:
            os.environ |= {
                "AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            }  # fmt: skip
            rates = measure(folder, server, options)
    for contestant, images_per_s in rates.items():
        print(f"{contestant:20} {images_per_s:8.1f} images/s")
    ratios = {
        "delayed ÷ not": round(rates["S3, delayed"] / rates["S3"], 2),
        "delayed ÷ disk": round(rates["S3, delayed"] / rates["disk"], 2),
        "lazy: delayed ÷ not": round(rates["S3, delayed, lazy"] / rates["S3, lazy"], 2),
        "lazy: delayed ÷ disk": round(rates["S3, delayed, lazy"] / rates["disk, lazy"], 2),
    }
    print(json.dumps(ratios, ensure_ascii=False))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
