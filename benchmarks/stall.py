"""How long training waits for images: the whole `finetune`, a B0 at 224 px on one worker.

    python benchmarks/stall.py [--images 256] [--epochs 4] [--variant b0] [--batch 16]

All cores of this machine, and a GPU if it has one.

The 500×375 JPEGs of `photographs`, packed. An epoch's wait is what its worker spent between
asking for a batch and having it, the evaluation's batches included; the first epoch, which also
waits for Ray Data to start, is told apart. The last line is JSON.
"""

import json
import os
import platform
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import photographs
import ray
import tyro

from effnet_ray import Packing, Placement, Recipe, finetune, pack
from effnet_ray.train.events import EpochDone, Event


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 256
    """JPEGs, a tenth of them for evaluation"""
    epochs: int = 4
    """epochs"""
    variant: str = "b0"
    batch: int = 16
    """images per step"""


def main(settings: Settings) -> None:
    """Train and print."""
    result: list[EpochDone] = []

    def record_event(event: Event) -> None:
        if isinstance(event, EpochDone):
            result.append(event)

    with tempfile.TemporaryDirectory() as name:
        photographs.make(Path(name) / "images", settings.images, 500, 375)
        pack(f"{name}/images", f"{name}/data", Packing(eval_fraction=0.1))
        recipe = Recipe(
            variant=settings.variant, weights="none", epochs=settings.epochs,
            batch_size=settings.batch, image_size=224,
        )  # fmt: skip
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        finetune(
            recipe,
            Placement(workers="1"),
            f"{name}/data",
            runs=f"{name}/runs",
            on_event=record_event,
        )
        ray.shutdown()
    share = [event.data_wait_s / event.seconds for event in result]
    for event, part in zip(result, share, strict=True):
        print(
            f"epoch {event.report.epoch}  {event.seconds:6.1f} s  "
            f"waited {event.data_wait_s:.2f} s "
            f"({part:.2%})  {event.images_per_s:.1f} images/s"
        )
    print(
        json.dumps(
            {
                "stall": round(statistics.median(share[1:]), 4),
                "stall_first_epoch": round(share[0], 4),
                "train_images_per_s": round(result[-1].images_per_s, 1),
                "epochs": settings.epochs,
                "images": settings.images,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
