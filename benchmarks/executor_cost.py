"""What the stream of images costs a training loop that waits for its own Python, as on a fast GPU.

    python benchmarks/executor_cost.py [--size 224] [--rate 300] [--rounds 30] [--unpaced]

The main thread has a core of its own and trains B0 on images so small that most of its time is
Python and launching. A thread of the same process takes images at a fixed rate and joins them into
batches, as in training. They come, in turns, from nowhere, from memory, and from the Ray Data
execution in this process, which is ahead of the loop all the time. All other threads and all of
Ray share the other core, so what the loop loses is Python's lock and the caches. `--unpaced` lets
Ray Data schedule at its own pace (`PacedSteps`). Prints a table and, last, one line of JSON.
"""

import itertools
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import photographs
import ray
import torch
import torch.nn.functional as F
import tyro

from effnet_ray import Packing, Recipe, pack
from effnet_ray.data import manifest as manifests, ray_executor
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.ray_executor import RayExecutor
from effnet_ray.data.stream import Images, Stream
from effnet_ray.model import network

ALONE, NOTHING, MEMORY, RAY_DATA = "before Ray Data", "no images", "images in memory", "Ray Data"
BATCH = 64


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    size: int = 224
    """Height and width of the images, px."""
    rate: int = 300
    """Images per second that the loop receives."""
    images: int = 4000
    """Packed images."""
    rounds: int = 30
    """Rounds of each contestant."""
    seconds: float = 2.0
    """Seconds of a round."""
    unpaced: bool = False
    """Whether Ray Data's scheduling loop may turn without a pause."""


def dataset_of(settings: Settings, folder: Path) -> Dataset:
    """Packed photographs, and a recipe of more epochs than the rounds use."""
    photographs.make(folder / "files", settings.images, settings.size, settings.size)
    pack(str(folder / "files"), str(folder / "data"), Packing(eval_fraction=0.01))
    recipe = Recipe(
        weights="none", epochs=1000, eval_every=1000, batch_size=BATCH, image_size=settings.size
    )
    spec = recipe.variant_spec.input_spec()
    resolved = recipe.resolved(spec, workers=1, on_gpu=False)
    data = str(folder / "data")
    spec = replace(spec, resolution=settings.size)
    return Dataset(manifests.load(data), data, resolved, spec)


class Consumer(threading.Thread):
    """Takes batches from the current source at a fixed rate."""

    def __init__(self, sources: dict[str, Iterator[Images]], rate: int) -> None:
        super().__init__(daemon=True)
        self.sources, self.rate = sources, rate
        self.current = NOTHING
        self.images = 0

    def run(self) -> None:
        """Until the process ends."""
        due = time.perf_counter()
        while True:
            if self.current == NOTHING or time.perf_counter() < due:
                time.sleep(0.001)
                continue
            images = next(self.sources[self.current])
            joined = np.empty((len(images.label), *images.image[0].shape[1:]), np.uint8)
            np.concatenate(images.image, out=joined)
            self.images += len(joined)
            due = max(due, time.perf_counter() - 0.5) + len(joined) / self.rate


def training_step() -> "tuple[torch.nn.Module, torch.optim.Optimizer]":
    """B0 and its optimizer."""
    recipe = Recipe(weights="none", image_size=32)
    model = network.build(recipe, recipe.variant_spec.input_spec(), 10).eval()
    return model, torch.optim.AdamW(model.parameters(), 0.0)  # the loss stays as it is


def rounds(settings: Settings, consumer: Consumer) -> Iterator[tuple[str, float, float]]:
    """Contestant, steps per second of the loop, images per second of the consumer."""
    model, optimizer = training_step()
    image, label = torch.rand(1, 3, 16, 16), torch.tensor([1])
    for number in range(settings.rounds):
        order = [NOTHING, *consumer.sources]
        for name in order if number % 2 else reversed(order):
            consumer.current = name
            time.sleep(0.3)
            steps, images, start = 0, consumer.images, time.perf_counter()
            while time.perf_counter() < start + settings.seconds:
                F.cross_entropy(model(image), label).backward()
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
            seconds = time.perf_counter() - start
            yield name, steps / seconds, (consumer.images - images) / seconds
    consumer.current = NOTHING


def alone(settings: Settings) -> Iterator[tuple[str, float, float]]:
    """As `rounds`, in a process without a stream."""
    yield from ((ALONE, *rates) for _, *rates in rounds(settings, Consumer({}, settings.rate)))


def main(settings: Settings) -> None:
    """Measure, and print."""
    torch.set_num_threads(1)
    ray_executor.STEP_S = 0.0 if settings.unpaced else ray_executor.STEP_S
    os.sched_setaffinity(0, {1})  # threads and processes started from here on
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        dataset = dataset_of(settings, Path(name))
        os.sched_setaffinity(0, {0})  # this thread only
        results = list(alone(settings))
        os.sched_setaffinity(0, {1})
        execute = RayExecutor(1, 256, local_chunks=dataset.plan.lanes)
        stream = Stream(dataset, rank=0, workers=1, first_step=0, execute=execute)
        batches = itertools.chain.from_iterable(
            stream.train(0) for _ in range(dataset.recipe.epochs)
        )
        kept = list(itertools.islice(batches, 4))
        consumer = Consumer({MEMORY: itertools.cycle(kept), RAY_DATA: batches}, settings.rate)
        consumer.start()
        os.sched_setaffinity(0, {0})  # this thread only
        results += rounds(settings, consumer)
        report(settings, results)
        ray.shutdown()


def report(settings: Settings, results: list[tuple[str, float, float]]) -> None:
    """The table and the line of JSON."""
    steps: dict[str, list[float]] = {}
    images: dict[str, list[float]] = {}
    for name, rate, received in results:
        steps.setdefault(name, []).append(rate)
        images.setdefault(name, []).append(received)
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates, steps[ALONE], strict=True))
        for name, rates in steps.items()
    }
    for name in (ALONE, NOTHING, MEMORY, RAY_DATA):
        median, received = statistics.median(steps[name]), statistics.median(images[name])
        print(f"{name:<18} {median:6.1f} steps/s  {ratios[name]:.3f}  {received:6.0f} images/s")
    print(
        json.dumps(
            {
                "vs_alone": {name: round(ratio, 3) for name, ratio in ratios.items()},
                "paced": not settings.unpaced,
                "size": settings.size,
                "images_per_s": round(statistics.median(images[RAY_DATA])),
                "rounds": settings.rounds,
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
