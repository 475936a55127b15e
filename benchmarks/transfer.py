"""What pretrained weights are worth, and which way of fine-tuning: on real images, no downloads.

    python benchmarks/transfer.py [--seeds 3] [--per-class 10] [--epochs 16]

A B0 learns the digits 0 to 4 (scikit-learn's scans) from scratch and is released. That release is
what the contestants start from when they learn 5 to 9 from a few images of each; one starts from
nothing. All have as many epochs; evaluation is on images that none has seen. Prints a table and,
last, one line of JSON: mean and standard deviation of eval top-1 over the seeds.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from PIL import Image
from sklearn.datasets import load_digits

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.store import ModelStore
from effnet_ray.runtime import session

TASK = {"image_size": 64, "batch_size": 16, "micro_batch": 8, "flip": 0.0, "crop_scale": 0.7,
        "crop_ratio": 1.1, "dropout": 0.1, "drop_path": 0.0}  # fmt: skip
"""What digits want, of every contestant: a mirrored 2 is no 2."""
EVALUATED = 60
"""Eval images of each class."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    seeds: int = 3
    per_class: int = 10
    """train images of each of the classes 5 to 9"""
    epochs: int = 16
    """of each contestant"""
    first_epochs: int = 12
    """of the weights that they start from"""


def contestants(release: str, epochs: int) -> dict[str, Recipe]:
    """Name → recipe. The defaults are `two phases`."""
    given = Recipe(weights=release, epochs=epochs, **TASK)  # type: ignore[arg-type]
    return {
        "from scratch": replace(given, weights="none"),
        "two phases": given,
        "one phase": replace(given, head_epochs=0),
        "head alone": replace(given, unfreeze="head"),
        "two phases, no layer decay": replace(given, layer_decay=1.0),
    }


def main(settings: Settings) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="effnet-transfer-") as name:
        folder = Path(name)
        session.connect(Placement(workers="1"), local=True, verbose=False)
        release = first(folder, settings.first_epochs)
        found: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in range(settings.seeds):
            data = digits(folder, f"few-{seed}", range(5, 10), settings.per_class, seed)
            for contestant, recipe in contestants(release, settings.epochs).items():
                began = time.perf_counter()
                top1 = trained(replace(recipe, seed=seed), data, folder, f"{contestant}-{seed}")
                found.setdefault(contestant, []).append(top1)
                seconds.setdefault(contestant, []).append(time.perf_counter() - began)
                print(f"seed {seed}  {contestant:28} {top1:.4f}", flush=True)
    table(found, seconds)
    print(json.dumps({
        **{name: [round(statistics.mean(tops), 4), round(spread(tops), 4)]
           for name, tops in found.items()},
        "seeds": settings.seeds, "per_class": settings.per_class, "epochs": settings.epochs,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
    }))  # fmt: skip


def first(folder: Path, epochs: int) -> str:
    """A release that knows the digits 0 to 4; its URI."""
    data = digits(folder, "many", range(5), per_class=110, seed=0)
    recipe = Recipe(weights="none", epochs=epochs, lr=3e-3, **TASK)  # type: ignore[arg-type]
    result = finetune(recipe, Placement(workers="1"), data, runs=f"{folder}/runs", name="first")
    print(f"0 to 4 from scratch: {result.eval_top1:.4f}", flush=True)
    return release_run(result, ModelStore(f"{folder}/store")).uri


def trained(recipe: Recipe, data: str, folder: Path, name: str) -> float:
    """Eval top-1 of the best epoch."""
    name = name.replace(" ", "-").replace(",", "")
    placement = Placement(workers="1")
    return finetune(recipe, placement, data, runs=f"{folder}/runs", name=name).eval_top1


def digits(folder: Path, name: str, classes: range, per_class: int, seed: int) -> str:
    """A packed data set of some digits, as PNGs of 32 px; which train depends on the seed."""
    scans, order = load_digits(), torch.Generator().manual_seed(seed)
    for digit in classes:
        places = [place for place, label in enumerate(scans.target) if label == digit]
        for rank, chosen in enumerate(torch.randperm(len(places), generator=order).tolist()):
            split = "train" if rank < per_class else "val"
            if rank >= per_class + EVALUATED:
                break
            file = folder / name / split / str(digit) / f"{places[chosen]}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = (scans.images[places[chosen]] * 15.9).astype("uint8")
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(file)
    pack(str(folder / name), str(folder / f"{name}-packed"), Packing())
    return str(folder / f"{name}-packed")


def spread(tops: list[float]) -> float:
    """Standard deviation; 0 of a single seed."""
    return statistics.stdev(tops) if len(tops) > 1 else 0.0


def table(found: dict[str, list[float]], seconds: dict[str, list[float]]) -> None:
    """Mean and spread of each, as Markdown."""
    print("\n| | eval top-1 | each seed | seconds |\n|---|---|---|---|")
    for name, tops in found.items():
        each = ", ".join(f"{top:.3f}" for top in tops)
        mean = f"{statistics.mean(tops):.3f} ± {spread(tops):.3f}"
        print(f"| {name} | {mean} | {each} | {statistics.median(seconds[name]):.0f} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
