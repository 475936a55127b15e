"""Seconds until a run has solved and evaluated its head, beside those that the features take.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/time_to_probe.py --real ~/effnet-real [--sets fashion emoji]

EfficientNet-Lite0's real ImageNet weights, default flags, up to the solved head's evaluation.
Prints a line per set; the last line is JSON.
"""

import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import tyro
from compare import Cell, Options, packed, recipe_of

from effnet_ray import Placement, finetune
from effnet_ray.train.events import ComputingFeatures, EpochDone, Event, HeadSolved


@dataclass(frozen=True)
class Settings:
    """What to run."""

    real: Path
    """Folder that `fetch.py` filled."""
    sets: tuple[str, ...] = ("fashion", "emoji")
    """Sets of pictures."""
    per_class: int = 400
    """Train images per class, at most."""


def measured(name: str, options: Options, per_class: int) -> dict[str, float]:
    """Seconds of each part, and eval top-1 of the solved head."""
    events = list[tuple[float, Event]]()
    cell = Cell(options.variant, name, per_class, 0)
    data = packed(cell, options)
    finetune(
        recipe_of(cell, options, epochs=1, eval_every=1, unfreeze="head"),
        Placement(workers="1"),
        data,
        runs=str(options.out / "runs"),
        name=cell.name,
        mirror=str(options.real / "weights"),
        on_event=lambda event: events.append((time.perf_counter(), event)),
    )
    features = [when for when, event in events if isinstance(event, ComputingFeatures)]
    solved = next(event for _, event in events if isinstance(event, HeadSolved))
    end, epoch = next((when, event) for when, event in events if isinstance(event, EpochDone))
    images = next(e.images for _, e in events if isinstance(e, ComputingFeatures))
    return {
        "images": images,
        "features_s": features[-1] - features[0],
        "solving_s": solved.seconds,
        "until_evaluated_s": end - features[0],
        "top1": epoch.report.eval_top1,
    }


def main(settings: Settings) -> None:
    """Run each set, and print."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        options = Options(settings.real, Path(folder))
        for name in settings.sets:
            result = measured(name, options, settings.per_class)
            ratio = 1 + result["solving_s"] / result["features_s"]
            results[name] = {key: round(value, 3) for key, value in result.items()}
            results[name]["vs_features"] = round(ratio, 2)
            print(
                f"{name}: features of {result['images']} images {result['features_s']:.1f} s, "
                f"solving {result['solving_s']:.1f} s (together {ratio:.2f} x), evaluated after "
                f"{result['until_evaluated_s']:.1f} s; top-1 {result['top1']:.3f}"
            )
    ray.shutdown()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(results | {"machine": machine, "torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
