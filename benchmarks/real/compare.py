"""Ways of fine-tuning EfficientNet-Lite0's real ImageNet weights, on real pictures.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/compare.py --real ~/effnet-real --out ~/effnet-compare

Every contestant gets the same train and eval images. Each result is a line of `OUT/results.jsonl`;
running the command again continues after the last one. Prints the table of all results.
"""

import json
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
import tyro
from sklearn.linear_model import LogisticRegression

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.data import feature_cache
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.train.run_setup import RunSetup, set_up_run

PROBE = "scikit-learn's linear probe"
CONTESTANTS = {
    "default": {},
    "trained head": {"head": "trained"},
    "gentle": {"lr": 3e-4, "layer_decay": 1.0},
}
"""Name → the fields of the recipe in which it differs from the default."""
EVAL_IMAGES = 200
"""Eval images per class, at most."""


@dataclass(frozen=True)
class Options:
    """What to compare."""

    real: Path
    """Folder that `fetch.py` filled."""
    out: Path
    """Folder for packed sets, runs and results."""
    sets: tuple[str, ...] = ("fashion", "stamps", "emoji", "digits")
    """Sets of pictures."""
    per_class: tuple[int, ...] = (10, 100)
    """Train images per class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the train images and of the runs."""
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    """What to compare with the linear probe, whose features the first of them caches."""
    epochs: int = 10
    """Epochs of each run."""
    image_size: int = 96
    """Height and width of the network's input, px."""


@dataclass(frozen=True)
class Cell:
    """One set of train images."""

    set: str
    per_class: int
    seed: int

    @property
    def name(self) -> str:
        """Its name as a folder."""
        return f"{self.set}-{self.per_class}-{self.seed}"


def packed(cell: Cell, real: Path, out: Path) -> str:
    """The cell's images as a data set."""
    target = out / "packed" / cell.name
    if not (target / "manifest.json").exists():
        source = out / "images" / cell.name
        for split, count in (("train", cell.per_class), ("val", EVAL_IMAGES)):
            for folder in sorted((real / cell.set / split).iterdir()):
                files = sorted(folder.iterdir())
                chosen = random.Random(cell.seed if split == "train" else 0).sample(
                    files, min(count, len(files))
                )
                (source / split / folder.name).mkdir(parents=True, exist_ok=True)
                for file in chosen:
                    copy = source / split / folder.name / file.name
                    copy.write_bytes(file.read_bytes())
        pack(str(source), str(target), Packing())
    return str(target)


def recipe_of(cell: Cell, options: Options, **changed: object) -> Recipe:
    """The default recipe of the cell, with some fields changed."""
    base = Recipe(
        variant="lite0",
        weights="in1k",
        epochs=options.epochs,
        eval_every=options.epochs - 1,
        image_size=options.image_size,
        seed=cell.seed,
    )
    return replace(base, **changed)  # type: ignore[arg-type]


def train(cell: Cell, contestant: str, data: str, options: Options) -> dict[str, float]:
    """Eval top-1 and seconds of a contestant's run."""
    start = time.perf_counter()
    result = finetune(
        recipe_of(cell, options, **CONTESTANTS[contestant]),
        Placement(workers="1"),
        data,
        runs=str(options.out / "runs"),
        name=f"{cell.name}-{contestant.replace(' ', '-')}",
        mirror=str(options.real / "weights"),
    )
    return {"top1": result.eval_top1, "seconds": round(time.perf_counter() - start, 1)}


Split = tuple[np.ndarray, np.ndarray]
"""Features [n, F] float32 and labels [n]."""


def cached_features(cell: Cell, data: str, options: Options) -> tuple[Split, Split]:
    """Train and eval features that the default run cached."""
    setup = set_up_run(
        recipe_of(cell, options, unfreeze="head"),
        Placement(workers="1"),
        data,
        runs=str(options.out / "runs"),
        name=f"{cell.name}-probe",
        mirror=str(options.real / "weights"),
    )
    assert isinstance(setup, RunSetup)
    return _cached(setup, "train"), _cached(setup, "eval")


def probe(cell: Cell, data: str, options: Options) -> dict[str, float]:
    """The better of scikit-learn's logistic regressions of features as they are, standardised."""
    (train_x, train_y), (eval_x, eval_y) = cached_features(cell, data, options)
    start = time.perf_counter()
    scores = []
    for centre, scale in ((0, 1), (train_x.mean(0), train_x.std(0).clip(1e-3))):
        fitted = LogisticRegression(max_iter=1000).fit((train_x - centre) / scale, train_y)
        scores.append(float(fitted.score((eval_x - centre) / scale, eval_y)))
    return {"top1": max(scores), "seconds": round(time.perf_counter() - start, 1)}


def _cached(setup: RunSetup, split: str) -> Split:
    dataset, parts = setup.job.dataset, []
    for number, shard in enumerate(dataset.manifest.splits[split]):
        uri = f"{dataset.features_uri(split, None)}/{feature_cache.file_name(number)}"
        groups = range(-(-sum(shard.row_groups) // feature_cache.ROW_GROUP_ROWS))
        parts += [feature_cache.read(uri, group) for group in groups]
    features = np.concatenate([part.feature for part in parts]).astype(np.float32)
    return features, np.concatenate([part.label for part in parts])


def table(results: list[dict[str, object]]) -> str:
    """Mean and standard deviation of eval top-1 over the seeds."""
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for result in results:
        column = f"{result['set']} {result['per_class']}"
        cells[str(result["contestant"]), column].append(float(str(result["top1"])))
    columns = sorted({column for _, column in cells})
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in (PROBE, *CONTESTANTS):
        values = [cells[name, column] for column in columns]
        lines.append(f"| {name} | " + " | ".join(map(_mean, values)) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main(options: Options) -> None:
    """Run what `OUT/results.jsonl` does not have yet."""
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "results.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(r["set"], r["per_class"], r["seed"], r["contestant"]) for r in results}
    ray.init(log_to_driver=False, logging_level="ERROR")
    for seed in options.seeds:
        for name in options.sets:
            for per_class in options.per_class:
                cell = Cell(name, per_class, seed)
                for contestant in (*options.contestants, PROBE):
                    key = {"set": name, "per_class": per_class, "seed": seed}
                    if (*key.values(), contestant) in done:
                        continue
                    data = packed(cell, options.real, options.out)
                    found = (
                        probe(cell, data, options)
                        if contestant == PROBE
                        else train(cell, contestant, data, options)
                    )
                    results.append(key | {"contestant": contestant} | found)
                    with log.open("a") as file:
                        print(json.dumps(results[-1]), file=file)
    print(table(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
