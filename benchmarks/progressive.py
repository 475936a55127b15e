"""Train images that grow (`--progressive 0.5`), against the whole size from the first epoch.

    python benchmarks/progressive.py [--seeds 3] [--epochs 10] [--size 96] [--target 0.95]

A B0 learns the digits 0 to 4 (scikit-learn's scans) from scratch; from its release the contestants
learn 5 to 9, by the default recipe, and are evaluated at their whole size. Each seed has its own
train images, and all contestants in turn. The third stays at the smaller size: what it reaches,
growing need not be thanked for. Prints a table and, last, one line of JSON: time to the target and
at the end as ratios to the whole size's, in seconds and in compute (pixels of the epochs in which
all learns).
"""

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from transfer import TASK, digits, first

from effnet_ray import Placement, Recipe, finetune, phases
from effnet_ray.runtime import session
from effnet_ray.train import events

MEASURES = ("seconds_to_target", "compute_to_target", "seconds", "compute")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    seeds: int = 3
    epochs: int = 10
    size: int = 96
    """px"""
    share: float = 0.5
    """of the size that the images begin at"""
    target: float = 0.95
    """eval top-1"""
    per_class: int = 100
    """train images of each of the classes 5 to 9"""
    first_epochs: int = 12
    """of the weights that they start from"""


@dataclass(frozen=True)
class Ran:
    """A run, epoch by epoch."""

    seconds: list[float]
    """Until each epoch's end."""
    top1: list[float]
    compute: list[float]
    """Until each epoch's end; 1 is an epoch at the whole size."""

    def reached(self, target: float) -> int | None:
        """The first epoch that came to it."""
        return next((epoch for epoch, top1 in enumerate(self.top1) if top1 >= target), None)


def contestants(settings: Settings, release: str) -> dict[str, Recipe]:
    """Name → recipe."""
    own = {"image_size": settings.size, "weights": release, "epochs": settings.epochs}
    whole = Recipe(**(TASK | own))  # type: ignore[arg-type]
    small = int(settings.size * settings.share)
    return {
        f"{settings.size} px": whole,
        f"{small} → {settings.size} px": replace(whole, progressive=settings.share),
        f"{small} px": replace(whole, image_size=small),
    }


def ran(recipe: Recipe, data: str, folder: str, name: str, whole: int) -> Ran:
    """Train, and listen."""
    seconds, top1 = [], []

    def record_event(event: events.Event) -> None:
        if isinstance(event, events.EpochDone):
            seconds.append(event.seconds + (seconds[-1] if seconds else 0.0))
            top1.append(event.report.eval_top1 or 0.0)

    finetune(recipe, Placement(workers="1"), data, runs=folder, name=name, on_event=record_event)
    known = recipe.with_defaults
    each = [
        (not phases.phase_at(known, epoch).frozen) * (phases.size_at(known, epoch) / whole) ** 2
        for epoch in range(recipe.epochs)
    ]
    compute = [sum(each[: epoch + 1]) for epoch in range(recipe.epochs)]
    return Ran(seconds, top1, compute)


def main(settings: Settings) -> None:
    """Measure and print."""
    found: dict[str, list[Ran]] = {}
    with tempfile.TemporaryDirectory(prefix="effnet-progressive-") as folder:
        session.connect(Placement(workers="1"), local=True, verbose=False)
        release = first(Path(folder), settings.first_epochs)
        for seed in range(settings.seeds):
            data = digits(Path(folder), f"rest-{seed}", range(5, 10), settings.per_class, seed)
            for number, (name, recipe) in enumerate(contestants(settings, release).items()):
                run = ran(replace(recipe, seed=seed), data, f"{folder}/runs", f"{number}-{seed}",
                          settings.size)  # fmt: skip
                found.setdefault(name, []).append(run)
                tops = ", ".join(f"{top:.3f}" for top in run.top1)
                print(f"seed {seed}  {name:12} {run.seconds[-1]:.0f} s  {tops}", flush=True)
    table(found, settings.target)
    print(json.dumps({
        "ratios": ratios(found, settings.target), "target": settings.target,
        "top1": {name: round(statistics.mean(max(r.top1) for r in runs), 4)
                 for name, runs in found.items()},
        "seeds": settings.seeds, "epochs": settings.epochs, "per_class": settings.per_class,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
    }))  # fmt: skip


def ratios(
    found: Mapping[str, Sequence[Ran]], target: float
) -> dict[str, dict[str, float | None]]:
    """Of medians over the seeds, to the first one's; None where a seed missed the target."""
    first, *others = found
    return {
        name: {
            what: _ratio(_median(found[name], target, what), _median(found[first], target, what))
            for what in MEASURES
        }
        for name in others
    }


def _ratio(mine: float | None, whole: float | None) -> float | None:
    return round(mine / whole, 3) if mine and whole else None


def _median(runs: Sequence[Ran], target: float, what: str) -> float | None:
    """Over the seeds."""
    kind, _, until = what.partition("_")
    places = [run.reached(target) if until else len(run.top1) - 1 for run in runs]
    values = [getattr(run, kind)[place] for run, place in zip(runs, places, strict=True)
              if place is not None]  # fmt: skip
    return statistics.median(values) if len(values) == len(runs) else None


def table(found: Mapping[str, Sequence[Ran]], target: float) -> None:
    """As Markdown: medians over the seeds, top-1 as mean ± spread."""
    print(f"\n| train images | best eval top-1 | to {target:g}: seconds | compute "
          "| whole run: seconds | compute |\n|---|---|---|---|---|---|")  # fmt: skip
    for name, runs in found.items():
        tops = [max(run.top1) for run in runs]
        spread = statistics.stdev(tops) if len(tops) > 1 else 0.0
        cells = [_median(runs, target, what) for what in MEASURES]
        output = " | ".join("not reached" if cell is None else f"{cell:.1f}" for cell in cells)
        print(f"| {name} | {statistics.mean(tops):.3f} ± {spread:.3f} | {output} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
