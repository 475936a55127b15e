"""What a smaller network gains from a larger one as its teacher (`--teacher`).

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/distil.py --real ~/effnet-real --out ~/effnet-distil

ImageNet weights of EfficientNet-Lite, default recipes. The teacher trains on the same train images
as its students, at its own size; a student without it is the baseline. Each result is a line of
OUT/results.jsonl; running the command again continues after the last one. Prints eval top-1, the
mean over seeds, and the mean gain over the student without a teacher with its standard error.
"""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from compare import Cell, Options, packed, recipe_of

from effnet_ray import ModelStore, Placement, finetune
from effnet_ray.publish.from_run import release_run
from effnet_ray.runtime import session

TEACHER, ALONE = "teacher", "no teacher"
Settings = tuple[float, float]
"""Weight and temperature."""


@dataclass(frozen=True)
class DistilOptions(Options):
    """What to train."""

    sets: tuple[str, ...] = ("emoji", "fashion")
    """Sets of pictures."""
    per_class: tuple[int, ...] = (100,)
    """Train images per class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the train images and of the runs."""
    teacher: str = "lite2"
    """The teacher's variant."""
    teacher_size: int = 160
    """Height and width of the teacher's input, px."""
    settings: tuple[Settings, ...] = ((0.5, 1.0),)
    """Weight and temperature of each student's teacher."""
    results: Path = field(default=Path("results.jsonl"))
    """File of results, in OUT."""


def names(options: DistilOptions) -> list[str]:
    """The networks that are trained on each set, the teacher first."""
    return [TEACHER, ALONE, *(f"{weight:g} at {heat:g}" for weight, heat in options.settings)]


def changes(cell: Cell, name: str, options: DistilOptions) -> dict[str, Any]:
    """The fields of the recipe in which a network differs from the default."""
    if name == TEACHER:
        return {"variant": options.teacher, "image_size": options.teacher_size}
    if name == ALONE:
        return {}
    weight, temperature = map(float, name.split(" at "))
    uri = str(options.out / "store" / run_name(cell, TEACHER) / "v0001")
    return {"teacher": uri, "teacher_weight": weight, "teacher_temperature": temperature}


def run_name(cell: Cell, name: str) -> str:
    """The run of a network."""
    return f"{cell.name}-{name.replace(' ', '-')}"


def trained(cell: Cell, name: str, options: DistilOptions) -> float:
    """Eval top-1 of a network: the better of its solved head and its last epoch."""
    recipe = recipe_of(cell, options, **changes(cell, name, options))
    result = finetune(
        recipe, Placement(workers="1"), packed(cell, options), runs=str(options.out / "runs"),
        name=run_name(cell, name), mirror=str(options.real / "weights"),
    )  # fmt: skip
    if name == TEACHER:
        release_run(result, ModelStore(str(options.out / "store")))
    return round(result.eval_top1, 4)


def cells(options: DistilOptions) -> Iterator[Cell]:
    """Every set of train images, those of the first seed first."""
    for seed, count, name in itertools.product(options.seeds, options.per_class, options.sets):
        yield Cell(options.variant, name, count, seed, options.eval_images)


def table(rows: list[dict[str, Any]], order: list[str]) -> str:
    """A line per set and network."""
    lines = ["| set | train images per class | network | eval top-1 | gain |", "|---" * 5 + "|"]
    groups = sorted({(row["set"], row["per_class"]) for row in rows})
    for (name, count), network in itertools.product(groups, order):
        cell = [row for row in rows if (row["set"], row["per_class"]) == (name, count)]
        top1 = {row["seed"]: row["top1"] for row in cell if row["network"] == network}
        alone = {row["seed"]: row["top1"] for row in cell if row["network"] == ALONE}
        if not top1:
            continue
        gains = 100 * np.array([top1[seed] - alone[seed] for seed in top1 if seed in alone])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        gain = "" if network == ALONE else f"{gains.mean():+.2f} ± {error:.2f}"
        mean = 100 * float(np.mean([*top1.values()]))
        lines.append(f"| {name} | {count} | {network} | {mean:.2f} | {gain} |")
    return "\n".join(lines)


def main(options: DistilOptions) -> None:
    """Train what OUT/results.jsonl does not have yet, and print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    log, order = options.out / options.results, names(options)
    session.start_local(os.cpu_count() or 1, log_to_driver=False, logging_level="ERROR")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for cell, name in itertools.product(cells(options), order):
        key = {**asdict(cell), "network": name}
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append(key | {"top1": trained(cell, name, options)})
        with log.open("a") as file:
            print(json.dumps(rows[-1]), file=file)
    print(table(rows, order))
    print(json.dumps({"torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(DistilOptions, description=__doc__))
