"""Images per second from shards on disk to training batches: ours, and what people use.

    python benchmarks/ingest.py [--images 3000] [--rounds 7]

Contestants take turns in one run on the same 500×375 JPEGs, each making random 224 px views:

- ours: `Stream`, the worker's planned Ray Data stream, to uint8 channels-last tensors;
- threads: bare threads around our own chunk reading, decoding and viewing; no Ray;
- loader, prefetch: timm's `create_loader` over a folder, 2 worker processes, Pillow, without and
  with timm's prefetcher;
- documented: Ray Data as its documentation shows it: `read_parquet`, `map` with Pillow and
  torchvision, `iter_torch_batches`.

A round is one epoch. Its rate is taken from the first quarter on, so that starting costs nobody
anything; the time to the first batch is told apart. Prints a table and, last, one line of JSON.
"""

import io
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import photographs
import ray
import ray.data
import timm.data
import torch
import tyro
from PIL import Image
from torchvision import transforms

from effnet_ray import Recipe, pack
from effnet_ray.data import manifest as manifests
from effnet_ray.data.ingest import Dataset, Stream, Task, load_chunk

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

SIZE = 224
CORES = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 3000
    """JPEGs in the set"""
    batch: int = 64
    """images per batch"""
    rounds: int = 7
    """rounds of each contestant"""


@dataclass(frozen=True)
class Round:
    """One epoch of one contestant."""

    first_s: float
    """To the first batch."""
    rate: float
    """Images per second after a quarter of the epoch."""


Contestant = Callable[[], Iterator[int]]
"""Yields the images of each batch as it becomes ready."""


def timed(batches: Iterator[int], total: int) -> Round:
    """Use up one epoch."""
    begin, done = time.perf_counter(), 0
    first = quarter = 0.0
    counted = 0
    for size in batches:
        done += size
        now = time.perf_counter()
        first = first or now - begin
        if not quarter and done >= total // 4:
            quarter, counted = now, done
    return Round(first, (done - counted) / (time.perf_counter() - quarter))


def ours(dataset: Dataset) -> Iterator[int]:
    """What a training worker does."""
    stream = Stream(
        dataset, rank=0, workers=1, first_step=0, decode_tasks=CORES + 1, prefetch_mb=256
    )
    for lanes in stream.train(0):
        for images in lanes:
            torch.from_numpy(images.image).permute(0, 3, 1, 2)
            yield len(images.label)


def threads(dataset: Dataset) -> Iterator[int]:
    """Our own chunks, in two threads."""
    tasks = [
        Task("train", 0, lane, chunk, 0)
        for chunk in range(dataset.plan.chunks_per_epoch)
        for lane in range(dataset.plan.lanes)
    ]
    with ThreadPoolExecutor(CORES) as pool:
        for blocks in pool.map(lambda task: list(load_chunk(dataset, task)), tasks):
            yield sum(len(block["label"]) for block in blocks)


def loader(folder: Path, batch: int, prefetcher: bool) -> Iterator[int]:
    """timm's loader over the files."""
    batches = timm.data.create_loader(
        timm.data.ImageDataset(str(folder)),
        input_size=(3, SIZE, SIZE),
        batch_size=batch,
        is_training=True,
        use_prefetcher=prefetcher,
        scale=(0.35, 1.0),
        color_jitter=None,
        interpolation="bicubic",
        num_workers=CORES,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    for image, _ in batches:
        yield len(image)


def documented(data: Path, batch: int) -> Iterator[int]:
    """Ray Data, by its documentation."""
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.35, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def transform(row: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        return {"image": view(image).numpy(), "label": row["label"]}

    rows = ray.data.read_parquet(str(data / "train")).map(transform)
    for found in rows.iter_torch_batches(batch_size=batch):
        yield len(found["label"])


def made(folder: Path, settings: Settings) -> tuple[Path, Dataset]:
    """The set as files and as a packed data set."""
    photographs.make(folder / "files", settings.images, 500, 375)
    data = folder / "data"
    pack(str(folder / "files"), str(data), eval_fraction=0.01)
    recipe = Recipe(weights="none", epochs=1, batch_size=settings.batch)
    spec = recipe.row.input_spec()
    settled = recipe.settled(spec, workers=1, on_gpu=False)
    return data, Dataset(manifests.load(str(data)), str(data), settled, spec)


def main(settings: Settings) -> None:
    """Let them take turns, and print."""
    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as name:
        data, dataset = made(Path(name), settings)
        files = Path(name) / "files"
        contestants: dict[str, Contestant] = {
            "ours": lambda: ours(dataset),
            "threads": lambda: threads(dataset),
            "loader": lambda: loader(files, settings.batch, prefetcher=False),
            "prefetch": lambda: loader(files, settings.batch, prefetcher=True),
            "documented": lambda: documented(data, settings.batch),
        }
        total = dataset.plan.images
        found: dict[str, list[Round]] = {name: [] for name in contestants}
        for number in range(settings.rounds + 1):  # the first warms up
            for name, contestant in contestants.items():
                result = timed(contestant(), total)
                if number:
                    found[name].append(result)
    ray.shutdown()
    report(found, settings)


def report(found: dict[str, list[Round]], settings: Settings) -> None:
    """The table and the JSON line."""
    rates = {name: [r.rate for r in rounds] for name, rounds in found.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = {name: statistics.median(r.first_s for r in rounds) for name, rounds in found.items()}
    for name, values in rates.items():
        print(
            f"{name:<11} {medians[name]:8,.0f} images/s  ({min(values):,.0f} to "
            f"{max(values):,.0f})  first batch after {first[name]:.2f} s"
        )

    def over(*names: str) -> float:
        pairs = zip(*(rates[name] for name in ("ours", *names)), strict=True)
        return round(statistics.median(mine / max(others) for mine, *others in pairs), 3)

    print(
        json.dumps(
            {
                "vs_dataloader": over("loader", "prefetch"),
                "vs_threads": over("threads"),
                "vs_documented": over("documented"),
                "images_per_s": round(medians["ours"]),
                "first_batch_s": {name: round(value, 2) for name, value in first.items()},
                "rounds": settings.rounds,
                "images": settings.images,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "timm": timm.__version__,
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
