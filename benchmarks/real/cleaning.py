"""Label errors made on purpose: how many `evaluate --corrections` finds, and what mending gains.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/cleaning.py --real ~/effnet-real --out ~/effnet-cleaning

Fashion-MNIST, EfficientNet-Lite0's ImageNet weights, default recipe. A share of the train labels
is replaced by a random other class. The model trained on them proposes corrections of its own
train images; a person, simulated, decides the first rows, as many as a share of the train images:
relabels the wrong ones and keeps the others. Then it is trained again. Prints eval top-1 with the
errors, after the decisions, and with the true labels.
"""

import csv
import io
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from effnet_ray import ModelStore, Packing, Placement, Recipe, finetune, pack
from effnet_ray.inference.corrections import MAX_MISTAKES, write_corrections
from effnet_ray.inference.evaluate import evaluate
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.load import load_release


@dataclass(frozen=True)
class Options:
    """What to train on."""

    real: Path
    """Folder that `fetch.py` filled."""
    out: Path
    """Folder for data sets, runs and releases."""
    per_class: int = 100
    """Train images per class."""
    eval_images: int = 100
    """Eval images per class."""
    flipped: float = 0.05
    """Share of train images with a wrong label."""
    decided: float = 0.05
    """Rows that are decided, as a share of the train images."""
    epochs: int = 10
    """Epochs of each run."""
    image_size: int = 96
    """Height and width of the network's input, px."""
    seed: int = 0
    """Seed of the images, of the errors and of the runs."""


def folders(options: Options) -> dict[str, str]:
    """Write the images with their labels and errors; returns the true class of flipped paths."""
    draw, target, truth = random.Random(options.seed), options.out / "images", {}
    shutil.rmtree(target, ignore_errors=True)
    names = sorted(folder.name for folder in (options.real / "fashion/train").iterdir())
    for split, count in (("train", options.per_class), ("val", options.eval_images)):
        for name in names:
            files = sorted((options.real / "fashion" / split / name).iterdir())
            for file in draw.sample(files, count):
                label = name
                if split == "train" and draw.random() < options.flipped:
                    label = draw.choice([other for other in names if other != name])
                    truth[f"train/{label}/{name}-{file.name}"] = name
                place = target / split / label / f"{name}-{file.name}"
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)
    return truth


def train(options: Options, name: str, corrections: str = "") -> tuple[float, str]:
    """Pack and train; returns eval top-1 and the release."""
    data = str(options.out / "packed" / name)
    pack(str(options.out / "images"), data, Packing(corrections=corrections))
    recipe = Recipe(
        variant="lite0",
        weights="in1k",
        epochs=options.epochs,
        eval_every=options.epochs,
        image_size=options.image_size,
        seed=options.seed,
    )
    result = finetune(
        recipe, Placement(workers="2"), data, runs=str(options.out / "runs"), name=name,
        mirror=str(options.real / "weights"),
    )  # fmt: skip
    release = release_run(result, ModelStore(str(options.out / "store")))
    return result.eval_top1, release.uri


def decide(proposed: Path, rows: int, truth: Mapping[str, str], decided: Path) -> int:
    """Decide the first rows; returns how many of them are errors."""
    lines = list(csv.DictReader(io.StringIO(proposed.read_text())))
    for line in lines[:rows]:
        name = truth.get(line["path"])
        line["decision"] = f"relabel:{name}" if name else "keep"
    with decided.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return sum(line["path"] in truth for line in lines[:rows])


def main(options: Options) -> None:
    """Train with errors, propose, decide, train again, and once with the true labels."""
    truth = folders(options)
    before, release = train(options, "errors")
    evaluation = evaluate(
        load_release(release, ""),
        str(options.out / "packed/errors"),
        Placement(workers="2"),
        split="train",
        mistakes=MAX_MISTAKES,
    )
    proposed = options.out / "proposed.csv"
    count = write_corrections(evaluation, str(proposed))
    rows = round(options.decided * 10 * options.per_class)
    found = decide(proposed, rows, truth, options.out / "decided.csv")
    after, _ = train(options, "decided", str(options.out / "decided.csv"))
    everything = options.out / "all.csv"
    lines = [f"{path},relabel:{name}" for path, name in truth.items()]
    everything.write_text("\n".join(["path,decision", *lines]))
    clean, _ = train(options, "true", str(everything))
    print(f"{len(truth)} of {10 * options.per_class:,} train labels are wrong; {count} proposals")
    print(f"in the first {rows} rows: {found} of them ({found / len(truth):.0%})")
    print("| labels | eval top-1 |\n|---|---|")
    for name, top1 in (("with errors", before), ("after decisions", after), ("true", clean)):
        print(f"| {name} | {top1:.3f} |")
    print(json.dumps({"flipped": len(truth), "found": found, "before": before, "after": after}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
