"""Whether activation maps show what counts: hiding it lowers the probability fastest.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/explain.py --real ~/effnet-real --out ~/effnet-explain [--picture FILE]

EfficientNet-Lite0's ImageNet weights at 224 px, where a map has 7 × 7 cells. The cells of an eval
image are hidden one after the other, in its mean colour: those that speak most for the predicted
class first, or in random order, or those that speak least first. Prints the mean probability of
that class over all steps (the area under the deletion curve; Petsiuk et al. 2018, arXiv
1806.07421), of images predicted with at least 0.5.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
import tyro
from PIL import Image
from unknown import Options, classes_of, sampled, trained

from effnet_ray.data.views import write_eval_view
from effnet_ray.inference.activation_maps import class_maps, overlay
from effnet_ray.release.load import LoadedRelease

SETS = ("emoji", "stamps")
STEPS = 12
"""Steps in which all cells are hidden."""
ORDERS = ("most first", "random", "least first")


@dataclass(frozen=True)
class ExplainOptions(Options):
    """What to train on, and what to show."""

    image_size: int = 224
    epochs: int = 4
    images: int = 40
    """Most images per set."""
    picture: str = ""
    """Write two photographs with the maps of the last set's release to this PNG."""


def views_of(release: LoadedRelease, files: list[Path]) -> np.ndarray:
    """Views [n, R, R, 3]."""
    size = release.spec.resolution
    views = np.zeros((len(files), size, size, 3), np.uint8)
    for file, view in zip(files, views, strict=True):
        write_eval_view(file.read_bytes(), release.spec, view)
    return views


@torch.no_grad()
def probability(release: LoadedRelease, views: np.ndarray, label: int) -> np.ndarray:
    """The probability of one class for views [n, R, R, 3]."""
    logits = release.network(torch.from_numpy(views).permute(0, 3, 1, 2))
    return logits.softmax(1)[:, label].numpy()


def deletion(release: LoadedRelease, view: np.ndarray, label: int, order: np.ndarray) -> float:
    """The mean probability while the cells are hidden in this order."""
    side = round(len(order) ** 0.5)
    cell = view.shape[0] // side
    hidden, steps = view.copy(), [view.copy()]
    for part in np.array_split(order, STEPS):
        for place in part:
            row, column = divmod(int(place), side)
            at = slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)
            hidden[at] = view.mean(axis=(0, 1))
        steps.append(hidden.copy())
    return float(probability(release, np.stack(steps), label).mean())


def measured(release: LoadedRelease, views: np.ndarray) -> tuple[int, list[float]]:
    """The number of images, and the mean of each order."""
    draws, found = np.random.default_rng(0), list[list[float]]()
    for view in views:
        shares = torch.softmax(release.network(torch.from_numpy(view).permute(2, 0, 1)[None]), 1)[
            0
        ]
        label = int(shares.argmax())
        if shares[label] < 0.5:
            continue
        (cells,) = class_maps(release.network, view[None], torch.tensor([label]))
        best = cells.flatten().argsort(descending=True).numpy()
        orders = (best, draws.permutation(len(best)), best[::-1])
        found.append([deletion(release, view, label, order) for order in orders])
    return len(found), np.mean(found, axis=0).tolist()


def write_picture(release: LoadedRelease, png: str) -> None:
    """Write scikit-learn's two photographs with their maps."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    parts = list[np.ndarray]()
    for view in views_of(release, [folder / "flower.jpg", folder / "china.jpg"]):
        logits = release.network(torch.from_numpy(view).permute(2, 0, 1)[None])
        (found,) = class_maps(release.network, view[None], logits.argmax(1))
        print(release.classes[int(logits.argmax())])
        parts += [view, overlay(view, found)]
    Image.fromarray(np.concatenate(parts, axis=1)).quantize(128).save(png, optimize=True)


@torch.no_grad()
def main(options: ExplainOptions) -> None:
    """Print a row per set."""
    print("| set | images | " + " | ".join(ORDERS) + " |")
    print("|---" * (len(ORDERS) + 2) + "|")
    found = {}
    for name in SETS:
        classes = classes_of(options, name)
        release = trained(options, name, classes, name)
        files = sampled(options, name, "val", classes)
        views = views_of(release, files[:: max(1, len(files) // options.images)])
        images, means = measured(release, views)
        print(f"| {name} | {images} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
        found[name] = {"images": images, "means": means}
        if options.picture:
            write_picture(release, options.picture)
    print(json.dumps({"sets": found, "torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(ExplainOptions, description=__doc__))
