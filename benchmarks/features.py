"""The head's epochs from kept features, against the backbone running in each of them.

    python benchmarks/features.py [--images 800] [--epochs 10] [--rounds 3]

Photographs go through a real run (Ray, one worker, `--unfreeze head`) three times a round: by
images; by features that have to be computed first; by features that are there. Timed is what
happens between Ray's being up with a worker that holds its network, and the last epoch's end:
computing, reading, training, evaluating, checkpoints. Starting processes and importing torch is
left out of all three alike. Prints a table and, last, one line of JSON: ratios of medians.
"""

import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
import tyro
from photographs import make
from safetensors.torch import save_file

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.runtime import session
from effnet_ray.train import events


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 800
    """train and eval together"""
    epochs: int = 10
    rounds: int = 3
    size: int = 128
    """px"""
    variant: str = "b0"


class Clock:
    """Seconds of a run's work, from its events."""

    def __init__(self) -> None:
        self.computing = self.training = 0.0
        self._computed_from: float | None = None
        self._started = 0.0

    def __call__(self, event: events.Event) -> None:
        """Hear of it."""
        now = time.perf_counter()
        match event:
            case events.ComputingFeatures(done, images) if done:
                # The first tells of a piece that is done: its time is taken from the pace.
                if self._computed_from is None:
                    self._computed_from, self._first = now, done
                elif done == images:
                    pace = (now - self._computed_from) / (done - self._first)
                    self.computing = pace * images
            case events.WorkersStarted():
                self._started = now
            case events.EpochDone():
                self.training = now - self._started


def main(settings: Settings) -> None:
    """Measure and print."""
    seconds: dict[str, list[float]] = {"images": [], "computing": [], "kept": []}
    with tempfile.TemporaryDirectory(prefix="effnet-features-") as name:
        folder = Path(name)
        data, mirror = made(folder, settings)
        session.connect(Placement(workers="1"), local=True, verbose=False)
        by_features = Recipe(
            variant=settings.variant, weights="ns", image_size=settings.size, unfreeze="head",
            epochs=settings.epochs, batch_size=32,
        )  # fmt: skip
        for number in range(settings.rounds):
            for contestant in seconds:
                cached = contestant != "images"
                if contestant == "computing":
                    shutil.rmtree(folder / "runs/features", ignore_errors=True)
                clock = Clock()
                finetune(
                    replace(by_features, head_cache=cached), Placement(workers="1"), data,
                    runs=str(folder / "runs"), name=f"{contestant}-{number}", mirror=mirror,
                    on_event=clock,
                )  # fmt: skip
                seconds[contestant].append(clock.computing + clock.training)
                print(f"round {number}  {contestant:10} computing {clock.computing:6.2f} s  "
                      f"epochs {clock.training:6.2f} s", flush=True)  # fmt: skip
        kept = sum(f.stat().st_size for f in (folder / "runs/features").rglob("*.parquet"))
        packed = sum(f.stat().st_size for f in Path(data).rglob("*.parquet"))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({
        "first_use": round(median["computing"] / median["images"], 4),
        "second_use": round(median["kept"] / median["images"], 4),
        "bytes_of_images": round(kept / packed, 4),
        "seconds": {name: round(value, 2) for name, value in median.items()},
        "variant": settings.variant, "size": settings.size, "images": settings.images,
        "epochs": settings.epochs, "rounds": settings.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
    }))  # fmt: skip


def made(folder: Path, settings: Settings) -> tuple[str, str]:
    """A packed data set, and a mirror with made-up weights."""
    make(folder / "photographs", settings.images, 500, 375)
    pack(str(folder / "photographs"), str(folder / "data"), Packing(eval_fraction=0.2))
    torch.manual_seed(0)
    network = timm.create_model(f"tf_efficientnet_{settings.variant}")
    tag = Recipe(variant=settings.variant).variant_spec.weights_tag("ns")
    (folder / "mirror").mkdir()
    save_file(network.state_dict(), folder / "mirror" / f"{tag}.safetensors")
    return str(folder / "data"), str(folder / "mirror")


if __name__ == "__main__":
    main(tyro.cli(Settings))
