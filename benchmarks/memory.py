"""Memory while a worker's stream passes many times what the object store holds.

    python benchmarks/memory.py [--store-mb 512] [--times 10]

The views of the 500×375 JPEGs of `photographs`, at 224 px, through `Stream`; the store's use and
every process's resident memory are looked at ten times a second. The last line is JSON.
"""

import contextlib
import json
import os
import platform
import re
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import photographs
import psutil
import ray
import tyro
from ray._private.internal_api import memory_summary

from effnet_ray import Packing, Placement, Recipe, pack
from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.ray_executor import RayExecutor
from effnet_ray.data.stream import Stream

CORES = 2
IMAGES = 1600
VIEW = 3 * 224 * 224


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    store_mb: int = 512
    """MB of Ray's object store"""
    times: int = 10
    """views to stream, in sizes of the store"""


@dataclass
class Watch:
    """The highest of what was seen."""

    store_mb: float = 0.0
    driver_mb: float = 0.0
    """Unique to the process: the store's pages are not counted."""
    task_mb: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until it is over."""
        me = psutil.Process()
        while not self.done.wait(0.1):
            used = ray.cluster_resources()["object_store_memory"]
            left = ray.available_resources().get("object_store_memory", 0.0)
            self.store_mb = max(self.store_mb, (used - left) / 1e6)
            self.driver_mb = max(self.driver_mb, me.memory_full_info().uss / 1e6)
            for process in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ray::" in " ".join(process.cmdline()):
                        self.task_mb = max(self.task_mb, process.memory_full_info().uss / 1e6)


def spilled_mb() -> float:
    """What Ray wrote to disk for want of memory."""
    result = re.search(r"Spilled (\d+) MiB", memory_summary(stats_only=True))
    return float(result.group(1)) if result else 0.0


def main(settings: Settings) -> None:
    """Stream and print."""
    store = settings.store_mb * 10**6
    ray.init(
        address="local", num_cpus=CORES, object_store_memory=store, include_dashboard=False,
        log_to_driver=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        photographs.make(Path(name) / "images", IMAGES, 500, 375)
        pack(f"{name}/images", f"{name}/data", Packing(eval_fraction=0.01))
        epochs = -(-settings.times * store // (VIEW * IMAGES))
        recipe = Recipe(weights="none", epochs=epochs, batch_size=64)
        spec = recipe.variant_spec.input_spec()
        settled = recipe.resolved(spec, workers=1, on_gpu=False)
        dataset = Dataset(manifests.load(f"{name}/data"), f"{name}/data", settled, spec)
        watch, images, begin = Watch(), 0, time.perf_counter()
        watcher = threading.Thread(target=watch.run)
        watcher.start()
        decode_tasks, prefetch_mb = Placement().decoding(CORES, 1, settings.store_mb)
        execute = RayExecutor(decode_tasks, prefetch_mb, local_chunks=dataset.plan.lanes)
        stream = Stream(dataset, rank=0, workers=1, first_step=0, execute=execute)
        for _ in range(epochs):
            images += sum(len(step.label) for step in stream.train(0))
            images += sum(len(part.label) for part in stream.eval())
        seconds = time.perf_counter() - begin
        watch.done.set()
        watcher.join()
        spilled = spilled_mb()
    ray.shutdown()
    print(
        json.dumps(
            {
                "streamed_mb": round(images * VIEW / 1e6),
                "store_mb": settings.store_mb,
                "peak_store_mb": round(watch.store_mb),
                "peak_driver_mb": round(watch.driver_mb),
                "peak_task_mb": round(watch.task_mb),
                "spilled_mb": spilled,
                "images_per_s": round(images / seconds),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
