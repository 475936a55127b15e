"""Searches over EfficientNet-Lite0, 1 and 2 with real ImageNet weights, on real pictures.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/sweeps.py --real ~/effnet-real --out ~/effnet-sweeps

Trains the whole grid of variants and settings once and keeps the eval top-1 of every epoch, one
line per run of CURVES; running the command again continues after the last one. Then simulates our
sweep's rule, Ray Tune's ASHA and random search on these curves, each in many random orders, and
compares them after equal device-seconds. Prints one table.
"""

import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import tyro
from compare import Cell, Options as Comparison, packed, recipe_of

sys.path.append(str(Path(__file__).parents[1]))
from search_simulation import (
    Outcome,
    World,
    asha,
    grid_best,
    grid_cost,
    ladder,
    random_search,
)

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.data import manifest as manifests
from effnet_ray.runtime import session
from effnet_ray.sweep import space
from effnet_ray.train.events import EpochDone, Event
from effnet_ray.train.run_setup import for_data

VARIANTS = ("lite0", "lite1", "lite2")
SETTINGS = 6
"""Settings of each variant, drawn from the sweep's own space."""
EPOCHS = 8
ORDERS = 200
"""Random orders of the settings in which each search is simulated."""
DEVICES = 2
SHARES = (0.2, 0.3, 0.4, 0.5)
"""Parts of the device-seconds that training the whole grid takes."""


@dataclass(frozen=True)
class Options:
    """What to train and simulate."""

    real: Path
    """Folder that `fetch.py` filled."""
    out: Path
    """Folder for packed sets and runs."""
    curves: Path = Path(__file__).parents[1] / "results" / "real_curves.jsonl"
    """File of learning curves, which are added to it."""
    sets: tuple[str, ...] = ("emoji", "fashion")
    """Sets of pictures."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the train images and of the runs."""
    per_class: int = 25
    """Train images per class."""
    eval_images: int = 50
    """Eval images per class, at most."""
    image_size: int = 64
    """Height and width of the network's input, px."""


def train_missing(options: Options) -> None:
    """Train what CURVES does not have."""
    done = curves(options)
    for cell in _cells(options):
        comparison = Comparison(
            options.real, options.out, epochs=EPOCHS, image_size=options.image_size
        )
        base = _base(cell, comparison)
        for number, setting in enumerate(_settings(base)):
            key = {**asdict(cell), "size": options.image_size, "setting": number}
            if any(key.items() <= curve.items() for curve in done):
                continue
            result = (
                key | {"changed": setting} | _curve(replace(base, **setting), cell, comparison)
            )
            with options.curves.open("a") as file:
                print(json.dumps(result), file=file)


def curves(options: Options) -> list[dict[str, Any]]:
    """The learning curves so far."""
    lines = options.curves.read_text().splitlines() if options.curves.exists() else []
    return [json.loads(line) for line in lines]


def _base(cell: Cell, options: Comparison) -> Recipe:
    """What all trials share: the recipe that a sweep on the cell's images would have."""
    manifest = manifests.load(packed(cell, options))
    return for_data(replace(recipe_of(cell, options), eval_every=1), manifest, gpus=1)


def _settings(base: Recipe) -> list[space.Settings]:
    random, searched = Random(0), space.parse(space.default(base))
    return [searched.draw(random) for _ in range(SETTINGS)]


def _cells(options: Options) -> Iterator[Cell]:
    for seed in options.seeds:
        for name in options.sets:
            for variant in VARIANTS:
                yield Cell(variant, name, options.per_class, seed, options.eval_images)


def _curve(recipe: Recipe, cell: Cell, options: Comparison) -> dict[str, Any]:
    """Eval top-1 of every epoch, and median seconds of an epoch of the whole network."""
    seconds, tops = list[float](), list[float]()

    def on_event(event: Event) -> None:
        if isinstance(event, EpochDone):
            seconds.append(event.seconds)
            tops.append(round(event.report.eval_top1, 4))

    finetune(
        recipe, Placement(workers="1"), packed(cell, options),
        runs=str(options.out / "runs"), mirror=str(options.real / "weights"), on_event=on_event,
    )  # fmt: skip
    return {"top1": tops, "seconds": round(statistics.median(seconds), 2)}


class RecordedWorld:
    """The learning curves of one set and seed."""

    variants, settings, epochs = VARIANTS, SETTINGS, EPOCHS

    def __init__(self, recorded: Sequence[Mapping[str, Any]]) -> None:
        self._top1 = {(curve["variant"], curve["setting"]): curve["top1"] for curve in recorded}
        seconds = defaultdict[str, list[float]](list)
        for curve in recorded:
            seconds[curve["variant"]].append(curve["seconds"])
        # The fastest run: other work beside it only makes an epoch longer.
        self.costs = {name: min(values) for name, values in seconds.items()}

    @property
    def complete(self) -> bool:
        """Whether every variant was trained with every setting."""
        return len(self._top1) == len(self.variants) * self.settings

    def accuracy(self, variant: str, setting: int, epoch: int) -> float:
        """Eval top-1 after so many epochs, in points."""
        return 100 * float(self._top1[variant, setting][epoch - 1])


def worlds(options: Options) -> Iterator[tuple[str, RecordedWorld]]:
    """The sets and seeds whose grid is complete."""
    parts = defaultdict[str, list[dict[str, Any]]](list)
    for curve in curves(options):
        parts[f"{curve['set']} {curve['per_class']}, seed {curve['seed']}"].append(curve)
    for name, recorded in sorted(parts.items()):
        world = RecordedWorld(recorded)
        if world.complete:
            yield name, world


def searches(world: World, trials: int, seed: int) -> dict[str, Outcome]:
    """The outcome of each search."""
    rest = {"devices": DEVICES, "seed": seed}
    return {
        "our sweep": ladder(world, trials, **rest),
        "Ray Tune's ASHA": asha(world, **rest),
        "random search": random_search(world, **rest),
    }


def table(options: Options) -> str:
    """Points below the grid's best after shares of the grid's device-seconds, mean over orders."""
    columns = " | ".join(f"after {share:.0%}" for share in SHARES)
    lines = [f"| | search | {columns} |", "|---|---|" + "---|" * len(SHARES)]
    rows = defaultdict[str, list[list[float]]](list)
    for name, world in worlds(options):
        outcomes = [searches(world, 2 * SETTINGS, seed) for seed in range(ORDERS)]
        best, cost = grid_best(world), grid_cost(world)
        for search in outcomes[0]:
            row = [
                statistics.mean(
                    best - outcome[search].best_at(share * cost) for outcome in outcomes
                )
                for share in SHARES
            ]
            rows[search].append(row)
            lines.append(_line(name, search, row))
    for search, parts in rows.items():
        lines.append(
            _line("mean", search, [statistics.mean(part) for part in zip(*parts, strict=True)])
        )
    return "\n".join(lines)


def _line(world: str, search: str, row: Sequence[float]) -> str:
    return f"| {world} | {search} | {' | '.join(f'{points:.2f}' for points in row)} |"


def main(options: Options) -> None:
    """Train, simulate and print."""
    session.start_local(os.cpu_count() or 1, log_to_driver=False, logging_level="ERROR")
    train_missing(options)
    print(table(options))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
