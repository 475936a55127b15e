"""Which score tells pictures of nothing a model knows: AUROC of each, over pairs of real sets.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/unknown.py --real ~/effnet-real --out ~/effnet-unknown

EfficientNet-Lite0's ImageNet weights, default recipe, one release per set. The eval images of a
set are known to its release; those of the other sets are not (*far*). For *near* pairs three
classes of a set are left out of training, and their eval images are unknown. One release is
trained from scratch. AUROC is the share
of (unknown, known) pairs of images that a score ranks in that order: 0.5 is chance.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from scipy.special import logsumexp, softmax
from sklearn.covariance import ledoit_wolf

from effnet_ray import ModelStore, Placement, Recipe, finetune, pack
from effnet_ray.data.views import write_eval_view
from effnet_ray.inference.unknown_pictures import auroc
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.load import LoadedRelease, load_release

Array = npt.NDArray[np.float64]
SETS = ("digits", "emoji", "fashion", "stamps")
NEAR = ("digits", "emoji", "fashion")
LEFT_OUT = 3
"""Classes left out of training in a near pair."""


@dataclass(frozen=True)
class Options:
    """What to train on."""

    real: Path
    """Folder that `fetch.py` filled."""
    out: Path
    """Folder for data sets, runs and releases."""
    per_class: int = 100
    """Most train images per class."""
    eval_images: int = 50
    """Most eval images per class."""
    epochs: int = 10
    """Epochs of each run."""
    image_size: int = 96
    """Height and width of the network's input, px."""
    seed: int = 0
    """Seed of the images, of the classes left out and of the runs."""


@dataclass(frozen=True)
class Outputs:
    """What a network computes for some images."""

    features: Array
    """[n, F], before the last layer"""
    logits: Array
    """[n, K]"""
    label: npt.NDArray[np.int64]
    """[n]"""


def sampled(options: Options, name: str, split: str, classes: list[str]) -> list[Path]:
    """Up to `per_class` or `eval_images` files of each class."""
    draw, files = random.Random(options.seed), list[Path]()
    most = options.per_class if split == "train" else options.eval_images
    for label in classes:
        found = sorted((options.real / name / split / label).iterdir())
        files += draw.sample(found, min(most, len(found)))
    return files


def classes_of(options: Options, name: str) -> list[str]:
    """The class folders of a set."""
    return sorted(folder.name for folder in (options.real / name / "val").iterdir())


def trained(
    options: Options, name: str, classes: list[str], run: str, **changed: Any
) -> LoadedRelease:
    """A release trained on these classes of a set; `changed` are fields of the recipe."""
    source = options.out / "images" / run
    shutil.rmtree(source, ignore_errors=True)
    for split in ("train", "val"):
        for file in sampled(options, name, split, classes):
            place = source / split / file.parent.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    data = str(options.out / "packed" / run)
    pack(str(source), data)
    fields = {"variant": "lite0", "weights": "in1k", **changed}
    recipe = Recipe(
        epochs=options.epochs, image_size=options.image_size, seed=options.seed, **fields
    )
    result = finetune(
        recipe, Placement(workers="2"), data, runs=str(options.out / "runs"), name=run,
        mirror=str(options.real / "weights"),
    )  # fmt: skip
    uri = release_run(result, ModelStore(str(options.out / "store"))).uri
    return load_release(uri, "")


@torch.no_grad()
def outputs(release: LoadedRelease, files: list[Path]) -> Outputs:
    """The network's outputs; the label is -1 for classes it does not know."""
    size, features, logits = release.spec.resolution, list[Array](), list[Array]()
    views = np.zeros((len(files), size, size, 3), np.uint8)
    for file, view in zip(files, views, strict=True):
        write_eval_view(file.read_bytes(), release.spec, view)
    for part in torch.from_numpy(views).permute(0, 3, 1, 2).split(50):
        found = release.network.features(part)
        features.append(found.double().numpy())
        logits.append(release.network.backbone.classifier(found).double().numpy())
    index = {label: number for number, label in enumerate(release.classes)}
    label = np.array([index.get(file.parent.name, -1) for file in files])
    return Outputs(np.concatenate(features), np.concatenate(logits), label)


def unit(features: Array) -> Array:
    """Rows of length 1."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    normalised: Array = features / np.maximum(length, 1e-12)
    return normalised


Score = Callable[[Outputs], Array]
"""Scores of images, [n]; higher is stranger."""


def means(known: Outputs, features: Array) -> Array:
    """The mean of each class that has images."""
    present = np.unique(known.label)
    return np.stack([features[known.label == label].mean(axis=0) for label in present])


def nearest_mean(known: Outputs) -> Score:
    """1 minus the cosine to the nearest class mean."""
    centres = unit(means(known, unit(known.features)))
    return lambda images: 1 - (unit(images.features) @ centres.T).max(axis=1)


def neighbour(known: Outputs, k: int) -> Score:
    """The distance to the k-th neighbour (Sun et al. 2022, arXiv 2204.06507)."""
    reference, k = unit(known.features), min(k, len(known.features))
    return lambda images: np.sort(1 - unit(images.features) @ reference.T, axis=1)[:, k - 1]


def both(known: Outputs) -> Score:
    """The sum of the distances to the nearest neighbour and to the nearest mean."""
    parts = neighbour(known, 1), nearest_mean(known)
    return lambda images: parts[0](images) + parts[1](images)


def mahalanobis(known: Outputs) -> Score:
    """The smallest distance to a class mean (Lee et al. 2018, arXiv 1807.03888)."""
    centres = means(known, known.features)
    index = np.searchsorted(np.unique(known.label), known.label)
    covariance, _ = ledoit_wolf(known.features - centres[index])
    precision = np.linalg.inv(covariance)

    def score(images: Outputs) -> Array:
        away = images.features[:, None] - centres[None]
        distances: Array = np.einsum("nkf,fg,nkg->nk", away, precision, away, optimize=True)
        return distances.min(axis=1)

    return score


def scores(train: Outputs, held_out: Outputs) -> dict[str, Score]:
    """The contestants; those of features fitted on train images, and on half of the eval ones."""
    return {
        "1 - largest probability": lambda images: 1 - softmax(images.logits, axis=1).max(axis=1),
        "entropy": lambda images: (
            -(softmax(images.logits, axis=1) * np.log(softmax(images.logits, axis=1) + 1e-30)).sum(
                axis=1
            )
        ),
        "-largest logit": lambda images: -images.logits.max(axis=1),
        "energy": lambda images: -logsumexp(images.logits, axis=1),
        "nearest mean, train": nearest_mean(train),
        "nearest mean, eval": nearest_mean(held_out),
        "neighbour 1, train": neighbour(train, 1),
        "neighbour 10, train": neighbour(train, 10),
        "neighbour 1, eval": neighbour(held_out, 1),
        "neighbour 5, eval": neighbour(held_out, 5),
        "neighbour 1 + mean, train": both(train),
        "neighbour 1 + mean, eval": both(held_out),
        "Mahalanobis, train": mahalanobis(train),
        "Mahalanobis, eval": mahalanobis(held_out),
    }


def rows(options: Options) -> Iterator[tuple[str, dict[str, float]]]:
    """Each pair's name, and the AUROC of each score."""
    for name in SETS:
        everything = classes_of(options, name)
        release = trained(options, name, everything, name)
        yield from compared(options, release, name, everything, others_of(options, name, name))
    name, everything = "digits", classes_of(options, "digits")
    scratch = {"weights": "none", "flip": 0.0, "crop_scale": 0.7, "lr": 3e-3, "batch_size": 32}
    release = trained(options, name, everything, "digits-scratch", **scratch)
    others = others_of(options, name, "digits from scratch")
    yield from compared(options, release, name, everything, others)
    for name in NEAR:
        everything = classes_of(options, name)
        left_out = random.Random(options.seed).sample(everything, LEFT_OUT)
        kept = [label for label in everything if label not in left_out]
        release = trained(options, name, kept, f"{name}-near")
        unknown = sampled(options, name, "val", left_out)
        yield from compared(options, release, name, kept, [(f"{name}, {LEFT_OUT} left", unknown)])


def others_of(options: Options, name: str, title: str) -> list[tuple[str, list[Path]]]:
    """The name of each pair with another set, and the other set's eval images."""
    return [
        (f"{title} / {other}", sampled(options, other, "val", classes_of(options, other)))
        for other in SETS
        if other != name
    ]


def compared(
    options: Options,
    release: LoadedRelease,
    name: str,
    classes: list[str],
    others: list[tuple[str, list[Path]]],
) -> Iterator[tuple[str, dict[str, float]]]:
    """The rows of one release. Half of its eval images fit scores, the others measure them."""
    train = outputs(release, sampled(options, name, "train", classes))
    files = sampled(options, name, "val", classes)
    fitted, measured = outputs(release, files[::2]), outputs(release, files[1::2])
    contestants = scores(train, fitted)
    for pair, unknown_files in others:
        unknown = outputs(release, unknown_files)
        yield pair, {label: auroc(of(measured), of(unknown)) for label, of in contestants.items()}


def main(options: Options) -> None:
    """Print one row per pair, and the mean and the lowest of each score."""
    found = dict(rows(options))
    names = list(next(iter(found.values())))
    print("| known / unknown | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for pair, values in found.items():
        print(f"| {pair} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |")
    for label, reduce in (("mean", np.mean), ("lowest", np.min)):
        columns = [float(reduce([values[name] for values in found.values()])) for name in names]
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in columns) + " |")
    print(json.dumps({"pairs": found, "torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
