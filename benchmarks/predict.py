"""Predicting a folder of photographs, against a bare loop over the same batches.

    python benchmarks/predict.py [--images 1536] [--rounds 3] [--variant b0]

The bare loop is what one writes by hand and well: threads decode ahead, the network sees 64 images
at a time, nothing is written. Ours reads, decodes, predicts and writes Parquet, through Ray, with
one worker. Timed is from the first batch's end to the last one's, so that neither pays for its
start. Prints a table and, last, one line of JSON: the ratio of medians, and what starting took.
"""

import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray
import torch
import tyro
from photographs import make
from safetensors.torch import save

from effnet_ray import Placement, Recipe
from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.inference.predict import predict
from effnet_ray.model import network, pretrained
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format import layout
from effnet_ray.runtime import session
from effnet_ray.runtime.inference_actors import batch_images
from effnet_ray.storage.checksummed_json import to_json


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 1536
    rounds: int = 3
    variant: str = "b0"
    size: int = 224
    """px"""


class Clock:
    """Images a second between the first time it is told and the last."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._told: list[tuple[float, int]] = []

    def tell(self, done: int, images: int) -> None:
        """So many are done."""
        if done:
            self._told.append((time.perf_counter(), done))

    @property
    def rate(self) -> float:
        """Images per second."""
        (first, before), (last, done) = self._told[0], self._told[-1]
        return (done - before) / (last - first)

    @property
    def start_s(self) -> float:
        """Until the first batch."""
        return self._told[0][0] - self.began


def untrained(settings: Settings, folder: str) -> LoadedRelease:
    """A release whose network knows nothing; what it says does not matter here."""
    recipe = Recipe(variant=settings.variant, weights="none", image_size=settings.size)
    settled = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)
    spec = settled.variant_spec.input_spec()
    built = network.build(settled, spec, 10).eval().requires_grad_(False)
    names = tuple(map(str, range(10)))
    files = {
        layout.WEIGHTS: save({
            name: tensor.contiguous() for name, tensor in built.backbone.state_dict().items()
        }),
        layout.CONFIG: to_json(pretrained.hub_config(built, spec, names)),
        layout.RECIPE: to_json(asdict(settled)),
        layout.METRICS: to_json({"history": []}),
    }  # fmt: skip
    ModelStore(folder).publish("untrained", files, {"run": "none"})
    return load_release("untrained@v1", folder)


def views(files: list[Path], release: LoadedRelease, most: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Batches, decoded ahead by as many threads as there are cores."""

    def view(file: Path) -> npt.NDArray[np.uint8]:
        return eval_view(decode(file.read_bytes()), release.spec)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        coming = pool.map(view, files)
        while batch := list(itertools.islice(coming, most)):
            yield np.stack(batch)


@torch.no_grad()
def bare(folder: Path, release: LoadedRelease) -> Clock:
    """The loop by hand."""
    clock, done = Clock(), 0
    files = sorted(folder.rglob("*.jpg"))
    for batch in views(files, release, batch_images(release.recipe, release.spec.resolution)):
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
        done += len(release.network(pixels).softmax(1).topk(5).indices)
        clock.tell(done, len(files))
    return clock


def ours(folder: Path, release: LoadedRelease, out: str) -> Clock:
    """The job's own function."""
    clock = Clock()
    predict(release, str(folder), out, Placement(workers="1"), on_progress=clock.tell)
    return clock


def main(settings: Settings) -> None:
    """Measure and print."""
    result: dict[str, list[Clock]] = {"bare loop": [], "predict": []}
    with tempfile.TemporaryDirectory(prefix="effnet-predict-") as name:
        folder = Path(name) / "photographs"
        make(folder, settings.images, width=500, height=375)
        release = untrained(settings, f"{name}/store")
        session.connect(Placement(workers="1"), local=True, verbose=False)
        for number in range(settings.rounds):
            result["bare loop"].append(bare(folder, release))
            result["predict"].append(ours(folder, release, f"{name}/out-{number}"))
    rates = {who: statistics.median(clock.rate for clock in clocks)
             for who, clocks in result.items()}  # fmt: skip
    starts = {who: statistics.median(clock.start_s for clock in clocks)
              for who, clocks in result.items()}  # fmt: skip
    print("| | images/s | each round | first batch after, s |\n|---|---|---|---|")
    for who, clocks in result.items():
        each = ", ".join(f"{clock.rate:.1f}" for clock in clocks)
        print(f"| {who} | {rates[who]:.1f} | {each} | {starts[who]:.1f} |")
    print(json.dumps({
        "ratio": round(rates["predict"] / rates["bare loop"], 3),
        "start_s": {who: round(start, 2) for who, start in starts.items()}, **asdict(settings),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
        "ray": ray.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings))
