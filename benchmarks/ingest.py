"""Images per second from shards on disk to training batches: ours, and what people use.

    python benchmarks/ingest.py [--images 8000] [--rounds 7]

Contestants take turns in one run on the same 500×375 JPEGs, each making random 224 px views:

- ours: `Stream`, the worker's planned Ray Data stream, to uint8 channels-last tensors;
- threads: bare threads around our own chunk reading, decoding and viewing; no Ray;
- loader, prefetch: timm's `create_loader` over a folder, 2 worker processes, Pillow, without and
  with timm's prefetcher;
- unordered: our chunks through Ray Data as they come: what keeping the plan's order costs;
- documented: Ray Data as its documentation shows it: `read_parquet`, `map` with Pillow and
  torchvision, `ToTensor` first (docs.ray.io, "Working with PyTorch" and TorchVisionPreprocessor),
  `iter_torch_batches`.

A round is one epoch of each from a standing start to its last batch: everybody pays for starting,
as at the beginning of a run. (Between epochs ours streams on, and the others start anew.) Prints
a table and, last, one line of JSON.
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
from dataclasses import asdict, dataclass
from functools import partial
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

from effnet_ray import Packing, Placement, Recipe, pack
from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Block, ChunkTask, Dataset, load_chunks
from effnet_ray.data.ray_executor import RayExecutor, data_context
from effnet_ray.data.stream import Stream
from effnet_ray.data.thread_executor import ThreadExecutor

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

SIZE = 224
CORES = os.cpu_count() or 1
DECODE_TASKS, PREFETCH_MB = Placement().decoding(CORES, workers=1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 8000
    """JPEGs"""
    batch: int = 64
    """images per batch"""
    rounds: int = 7
    """rounds of each contestant"""


@dataclass(frozen=True)
class Set:
    """The same images as files, and packed."""

    files: Path
    data: Path
    dataset: Dataset


@dataclass(frozen=True)
class Epoch:
    """One epoch from a standing start."""

    images: int
    seconds: float
    first_s: float
    """To the first batch."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return float(self.images / self.seconds)


Contestant = Callable[[Set, int], Iterator[int]]
"""(set, batch size) → the images of each batch as it becomes ready."""


def timed(batches: Iterator[int]) -> Epoch:
    """Use up one epoch; what follows its last batch is not counted."""
    begin, images, first, last = time.perf_counter(), 0, 0.0, 0.0
    for size in batches:
        images += size
        last = time.perf_counter() - begin
        first = first or last
    return Epoch(images, last, first)


def ours(images: Set, batch: int) -> Iterator[int]:
    """What a training worker does."""
    execute = RayExecutor(DECODE_TASKS, PREFETCH_MB, local_chunks=images.dataset.plan.lanes)
    stream = Stream(images.dataset, rank=0, workers=1, first_step=0, execute=execute)
    for images in stream.train(0):
        for part in images.image:
            torch.from_numpy(part).permute(0, 3, 1, 2)
        yield len(images.label)
    for _ in stream.eval():  # left in the stream it would be cancelled, and Ray's processes ended
        pass


def threads(images: Set, batch: int) -> Iterator[int]:
    """Our own chunks, in two threads."""
    for block in ThreadExecutor(CORES)(images.dataset, every_task(images.dataset)):
        yield len(block["label"])


def unordered(images: Set, batch: int) -> Iterator[int]:
    """Our chunks through Ray Data, in any order."""
    dataset = images.dataset
    tasks = [asdict(task) for task in every_task(dataset)]

    def fetch(found: dict[str, Any]) -> Iterator[Block]:
        task = ChunkTask(**{name: column.tolist()[0] for name, column in found.items()})
        yield from load_chunks(dataset, [task])

    context = data_context(PREFETCH_MB)
    context.execution_options.preserve_order = False
    with ray.data.DataContext.current(context):
        blocks = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            fetch, batch_size=None, num_cpus=0, concurrency=min(DECODE_TASKS, len(tasks))
        )
    for block in blocks.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        yield len(block["label"])


def every_task(dataset: Dataset) -> list[ChunkTask]:
    """The chunks of the first epoch."""
    return [
        ChunkTask("train", 0, lane, chunk, 0, view=0)
        for chunk in range(dataset.plan.chunks_per_epoch)
        for lane in range(dataset.plan.lanes)
    ]


def loader(images: Set, batch: int, *, prefetcher: bool = False) -> Iterator[int]:
    """timm's loader over the files."""
    batches = timm.data.create_loader(
        timm.data.ImageDataset(str(images.files)),
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


def documented(images: Set, batch: int) -> Iterator[int]:
    """Ray Data, by its documentation."""
    view = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.RandomResizedCrop(SIZE, scale=(0.35, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def transform(row: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        return {"image": view(image).numpy(), "label": row["label"]}

    rows = ray.data.read_parquet(str(images.data / "train")).map(transform)
    for found in rows.iter_torch_batches(batch_size=batch):
        yield len(found["label"])


def made(folder: Path, count: int, batch: int) -> Set:
    """A set of `count` JPEGs."""
    photographs.make(folder / "files", count, 500, 375)
    data = folder / "data"
    pack(str(folder / "files"), str(data), Packing(eval_fraction=0.01))
    recipe = Recipe(weights="none", epochs=1, batch_size=batch)
    spec = recipe.variant_spec.input_spec()
    settled = recipe.resolved(spec, workers=1, on_gpu=False)
    return Set(
        folder / "files", data, Dataset(manifests.load(str(data)), str(data), settled, spec)
    )


CONTESTANTS: dict[str, Contestant] = {
    "ours": ours,
    "unordered": unordered,
    "threads": threads,
    "loader": loader,
    "prefetch": partial(loader, prefetcher=True),
    "documented": documented,
}


def main(asked: Settings) -> None:
    """Let them take turns, and print."""
    ray.init(
        address="local",
        num_cpus=CORES,
        include_dashboard=False,
        log_to_driver=False,
        # A run's stream keeps its processes; here they would be ended while others take turns.
        _system_config={"idle_worker_killing_time_threshold_ms": 600_000},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: dict[str, list[Epoch]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as name:
        images = made(Path(name), asked.images, asked.batch)
        for number in range(asked.rounds + 1):  # the first warms up
            for name, contestant in CONTESTANTS.items():
                epoch = timed(contestant(images, asked.batch))
                if number:
                    found[name].append(epoch)
        stored = bytes_per_image(images.dataset)
    ray.shutdown()
    report(found, asked, stored)


def bytes_per_image(dataset: Dataset) -> float:
    """Bytes through the object store, views with ids and labels, per image."""
    blocks = list(load_chunks(dataset, every_task(dataset)[:1]))
    size = sum(column.nbytes for block in blocks for column in block.values())
    return size / sum(len(block["label"]) for block in blocks)


def report(found: dict[str, list[Epoch]], asked: Settings, stored: float) -> None:
    """The table and the JSON line."""
    rates = {name: [epoch.rate for epoch in epochs] for name, epochs in found.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = {
        name: statistics.median(epoch.first_s for epoch in epochs)
        for name, epochs in found.items()
    }
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
                "vs_unordered": over("unordered"),
                "bytes_vs_float32": round(stored / (4 * 3 * SIZE**2), 3),
                "images_per_s": round(medians["ours"]),
                "first_batch_s": {name: round(value, 2) for name, value in first.items()},
                "rounds": asked.rounds,
                "images": asked.images,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "timm": timm.__version__,
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
