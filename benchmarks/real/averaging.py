"""Whether the mean of a run's checkpoints (`models average`) is better on images nobody chose by.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/averaging.py --real ~/effnet-real --out ~/effnet-averaging

EfficientNet-Lite0's ImageNet weights, default recipe, the checkpoints of all ten epochs kept. The
eval split chooses the best epoch and what is averaged; the test split is other images of the
set. Each result is a line of OUT/results.jsonl; running the command again continues after the last
one. Prints top-1 of the best epoch and of the mean on both.
"""

import itertools
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from effnet_ray import ModelStore, Placement, Recipe, finetune, pack
from effnet_ray.inference.evaluate import evaluate
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.load import load_release
from effnet_ray.runtime import session
from effnet_ray.train.average import average, run_candidates
from effnet_ray.train.metric_definitions import EVAL_TOP1
from effnet_ray.train.run_record import Result


@dataclass(frozen=True)
class Options:
    """What to train."""

    real: Path
    """Folder that `fetch.py` filled."""
    out: Path
    """Folder for data sets, runs and results."""
    sets: tuple[str, ...] = ("emoji", "fashion")
    """Sets of pictures."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the images and of the runs."""
    train: int = 100
    """Train images per class, at most."""
    eval: int = 50
    """Eval images per class, at most."""
    test: int = 150
    """Test images per class, at most."""
    epochs: int = 10
    """Epochs of each run."""
    image_size: int = 96
    """Height and width of the network's input, px."""


def packed(options: Options, name: str, seed: int) -> str:
    """The set as a data set with three splits; the eval and test images are those of `val`."""
    folder = options.out / "images" / f"{name}-{seed}"
    data = str(options.out / "packed" / f"{name}-{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    draw = random.Random(seed)
    for label in sorted(path.name for path in (options.real / name / "val").iterdir()):
        others = sorted((options.real / name / "val" / label).iterdir())
        draw.shuffle(others)
        train = sorted((options.real / name / "train" / label).iterdir())
        parts = {
            "train": draw.sample(train, min(options.train, len(train))),
            "val": others[: options.eval],
            "test": others[options.eval :][: options.test],
        }
        for split, files in parts.items():
            (folder / split / label).mkdir(parents=True)
            for file in files:
                shutil.copy(file, folder / split / label)
    pack(str(folder), data)
    return data


def trained(options: Options, name: str, seed: int, data: str) -> Result:
    """The run, with the checkpoints of all its epochs."""
    recipe = Recipe(
        variant="lite0", weights="in1k", epochs=options.epochs, image_size=options.image_size,
        seed=seed,
    )  # fmt: skip
    placement = Placement(workers="1", keep_checkpoints=options.epochs)
    return finetune(
        recipe, placement, data, runs=str(options.out / "runs"), name=f"{name}-{seed}",
        mirror=str(options.real / "weights"),
    )  # fmt: skip


def test_top1(options: Options, result: Result, data: str) -> float:
    """Top-1 of a run's release on the test split."""
    release = release_run(result, ModelStore(str(options.out / "store")))
    loaded = load_release(release.uri, "")
    found = evaluate(loaded, data, Placement(workers="1"), split="test", examples=0)
    return found.metrics.share(EVAL_TOP1)


def measured(options: Options, name: str, seed: int) -> dict[str, Any]:
    """Top-1 of the best epoch and of the mean, which may be the same."""
    data = packed(options, name, seed)
    result = trained(options, name, seed, data)
    averaged = average(
        run_candidates(result.run_uri), str(options.out / "runs"), result.run, most=options.epochs
    )
    best = test_top1(options, result, data)
    return {
        "set": name,
        "seed": seed,
        "kept": sum(tried.kept for tried in averaged.tried),
        "eval": result.eval_top1,
        "eval_mean": averaged.score,
        "test": best,
        "test_mean": test_top1(options, averaged.result, data) if averaged.result else best,
    }


def main(options: Options) -> None:
    """Measure what OUT/results.jsonl does not have yet, and print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "results.jsonl"
    session.start_local(os.cpu_count() or 1, log_to_driver=False, logging_level="ERROR")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed, name in itertools.product(options.seeds, options.sets):
        if any((row["set"], row["seed"]) == (name, seed) for row in rows):
            continue
        rows.append(measured(options, name, seed))
        with log.open("a") as file:
            print(json.dumps(rows[-1]), file=file)
    print("| set | seed | checkpoints kept | eval best | eval mean | test best | test mean |")
    print("|---" * 7 + "|")
    for row in rows:
        shares = (f"{100 * row[key]:.2f}" for key in ("eval", "eval_mean", "test", "test_mean"))
        print(f"| {row['set']} | {row['seed']} | {row['kept']} | {' | '.join(shares)} |")
    gains = [100 * (row["test_mean"] - row["test"]) for row in rows]
    print(json.dumps({"mean_test_gain": float(np.mean(gains)), "torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
