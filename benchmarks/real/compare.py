"""Ways of fine-tuning EfficientNet-Lite0's real ImageNet weights, on real pictures.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/compare.py --real ~/effnet-real --out ~/effnet-compare

Every contestant gets the same train and eval images. Each result is a line of RESULTS; running the
command again continues after the last one. Prints the table of all results.
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import baselines
import numpy as np
import tyro
from baselines import BASELINES
from results_table import table
from sklearn.linear_model import LogisticRegression

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.data import feature_cache
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.runtime import session
from effnet_ray.train.events import EpochDone, Event
from effnet_ray.train.run_setup import RunSetup, set_up_run
from effnet_ray.variants import VARIANTS

PROBE = "scikit-learn's linear probe"
OURS = {
    "default": {},
    "trained head": {"head": "trained"},
    "gentle": {"lr": 3e-4, "layer_decay": 1.0},
}
DIALS = {
    "mixup 0.2": {"mixup": 0.2},
    "CutMix 1": {"cutmix": 1.0},
    "RandAugment": {"aa": "rand"},
    "random erasing 0.25": {"reprob": 0.25},
    "EMA 0.98": {"ema_decay": 0.98},
    "progressive resizing from 0.6": {"progressive": 0.6},
    "no label smoothing": {"label_smoothing": 0.0},
    "no drop path": {"drop_path": 0.0},
    "crops of at least 0.7": {"crop_scale": 0.7},
    "BatchNorm trains": {"batchnorm": "train"},
    "class weights": {"class_weights": "balanced"},
}
RECIPES = OURS | DIALS
"""Name → the fields of the recipe in which it differs from the default."""
CONTESTANTS = (PROBE, *RECIPES, *BASELINES)
COMPARED = (PROBE, "default", *BASELINES)


@dataclass(frozen=True)
class Options:
    """What to compare."""

    real: Path
    """Folder that `fetch.py` filled."""
    out: Path
    """Folder for packed sets and runs."""
    results: Path = Path(__file__).parents[1] / "results" / "real_weights.jsonl"
    """File of results, which are added to it."""
    variant: Literal["lite0", "lite1", "lite2"] = "lite0"
    """Network."""
    sets: tuple[str, ...] = ("fashion", "stamps", "emoji", "digits")
    """Sets of pictures."""
    per_class: tuple[int, ...] = (10, 100)
    """Train images per class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the train images and of the runs."""
    contestants: tuple[str, ...] = COMPARED
    """What to compare; of `CONTESTANTS`."""
    dials: bool = False
    """Compare the default with `DIALS`, instead."""
    eval_images: int = 200
    """Eval images per class, at most."""
    epochs: int = 10
    """Epochs of each run."""
    image_size: int = 96
    """Height and width of the network's input, px."""


@dataclass(frozen=True)
class Cell:
    """One set of train images, and the network that is fine-tuned on them."""

    variant: str
    set: str
    per_class: int
    seed: int
    eval_images: int = 200

    @property
    def images(self) -> str:
        """Name of its images as a folder."""
        return f"{self.set}-{self.per_class}-{self.seed}-{self.eval_images}"

    @property
    def name(self) -> str:
        """Name of its runs."""
        return f"{self.variant}-{self.images}"


Scores = dict[str, float]
"""`top1`: eval top-1 after the last epoch. `released`: of the epoch that effnet_ray releases, the
best on the same eval images."""


def folders(cell: Cell, options: Options) -> Path:
    """The cell's images as `train` and `val`, a folder for each class."""
    target = options.out / "images" / cell.images
    if target.exists():
        return target
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for split, count in (("train", cell.per_class), ("val", cell.eval_images)):
        for folder in sorted((options.real / cell.set / split).iterdir()):
            files = sorted(folder.iterdir())
            draw = random.Random(cell.seed if split == "train" else 0)
            (part / split / folder.name).mkdir(parents=True)
            for file in draw.sample(files, min(count, len(files))):
                shutil.copy(file, part / split / folder.name)
    return part.rename(target)


def packed(cell: Cell, options: Options) -> str:
    """The cell's images as a data set."""
    target = options.out / "packed" / cell.images
    if not (target / "manifest.json").exists():
        pack(str(folders(cell, options)), str(target), Packing())
    return str(target)


def recipe_of(cell: Cell, options: Options, **changed: object) -> Recipe:
    """The default recipe of the cell, with some fields changed."""
    base = Recipe(
        variant=cell.variant,
        weights="in1k",
        epochs=options.epochs,
        eval_every=options.epochs,
        image_size=options.image_size,
        seed=cell.seed,
    )
    return replace(base, **changed)  # type: ignore[arg-type]


def ours(cell: Cell, options: Options, changed: Mapping[str, object]) -> Scores:
    """Eval top-1 of a run of effnet_ray."""
    tops = list[float]()

    def on_event(event: Event) -> None:
        if isinstance(event, EpochDone) and event.report.eval_images:
            tops.append(event.report.eval_top1)

    digest = hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]
    result = finetune(
        recipe_of(cell, options, **changed),
        Placement(workers="1"),
        packed(cell, options),
        runs=str(options.out / "runs"),
        name=f"{cell.name}-{digest}",
        mirror=str(options.real / "weights"),
        on_event=on_event,
    )
    return {"top1": round(tops[-1], 4), "released": round(result.eval_top1, 4)}


def baseline(cell: Cell, options: Options, chosen: baselines.Baseline) -> Scores:
    """Eval top-1 of a baseline."""
    spec = replace(VARIANTS[cell.variant].weights["in1k"], resolution=options.image_size)
    images = folders(cell, options)
    train, test = baselines.load(images / "train"), baselines.load(images / "val")
    model = baselines.fine_tune(
        chosen, train, int(test.label.max()) + 1,
        options.real / "weights" / f"tf_efficientnet_{cell.variant}.in1k.safetensors",
        epochs=options.epochs, spec=spec, variant=cell.variant, seed=cell.seed,
    )  # fmt: skip
    return {"top1": round(baselines.top1(model, test, spec), 4)}


Split = tuple[np.ndarray, np.ndarray]
"""Features [n, F] float32 and labels [n]."""


def cached_features(cell: Cell, options: Options) -> tuple[Split, Split]:
    """Train and eval features; cached by a run that only solves the head, unless they exist."""
    recipe = recipe_of(cell, options, unfreeze="head")
    ours(cell, options, {"unfreeze": "head"})
    setup = set_up_run(
        recipe,
        Placement(workers="1"),
        packed(cell, options),
        runs=str(options.out / "runs"),
        name=f"{cell.name}-probe",
        mirror=str(options.real / "weights"),
    )
    assert isinstance(setup, RunSetup)
    return _cached(setup, "train"), _cached(setup, "eval")


def probe(cell: Cell, options: Options) -> Scores:
    """Eval top-1 of the better logistic regression: of features as they are, or standardised."""
    (train_x, train_y), (eval_x, eval_y) = cached_features(cell, options)
    scores = []
    for centre, scale in ((0, 1), (train_x.mean(0), train_x.std(0).clip(1e-3))):
        fitted = LogisticRegression(max_iter=1000).fit((train_x - centre) / scale, train_y)
        scores.append(float(fitted.score((eval_x - centre) / scale, eval_y)))
    return {"top1": round(max(scores), 4)}


def _cached(setup: RunSetup, split: str) -> Split:
    dataset, parts = setup.job.dataset, []
    for number, shard in enumerate(dataset.manifest.splits[split]):
        uri = f"{dataset.features_uri(split, None)}/{feature_cache.file_name(number)}"
        groups = range(-(-sum(shard.row_groups) // feature_cache.ROW_GROUP_ROWS))
        parts += [feature_cache.read(uri, group) for group in groups]
    features = np.concatenate([part.feature for part in parts]).astype(np.float32)
    return features, np.concatenate([part.label for part in parts])


def score(cell: Cell, contestant: str, options: Options) -> Scores:
    """Eval top-1 of a contestant on a cell."""
    if contestant == PROBE:
        return probe(cell, options)
    if contestant in RECIPES:
        return ours(cell, options, RECIPES[contestant])
    return baseline(cell, options, BASELINES[contestant])


def run_missing(options: Options, log: Path) -> None:
    """Run each contestant on each cell, unless `log` has the result."""
    done = [json.loads(line) for line in _lines(log)]
    names = ("default", *DIALS) if options.dials else options.contestants
    for cell, name in itertools.product(cells(options), names):
        key = {**asdict(cell), "size": options.image_size, "epochs": options.epochs}
        key["contestant"] = name
        if any(key.items() <= result.items() for result in done):
            continue
        start = time.perf_counter()
        scores = score(cell, name, options)
        seconds = round(time.perf_counter() - start, 1)
        with log.open("a") as file:
            print(json.dumps(key | scores | {"seconds": seconds}), file=file)


def cells(options: Options) -> Iterator[Cell]:
    """Every set of train images, those of the first seed first."""
    for seed, per_class, name in itertools.product(options.seeds, options.per_class, options.sets):
        yield Cell(options.variant, name, per_class, seed, options.eval_images)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main(options: Options) -> None:
    """Run what RESULTS does not have yet, and print the table."""
    if options.dials or any(name in (PROBE, *RECIPES) for name in options.contestants):
        session.start_local(os.cpu_count() or 1, log_to_driver=False, logging_level="ERROR")
    run_missing(options, options.results)
    print(table([json.loads(line) for line in _lines(options.results)], CONTESTANTS))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
