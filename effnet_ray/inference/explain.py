"""Pictures of why a release predicts what it predicts, for the first images of a source.

    OUT/_explained/00000.png …   what the network saw, and the class-activation map over it
    OUT/_explained/index.csv     file, path, label, probability

A few pictures need no cluster: they are made in this process.
"""

import csv
import io

import numpy as np
import torch

from effnet_ray import storage
from effnet_ray.data.views import write_eval_view
from effnet_ray.errors import ImageError
from effnet_ray.inference import image_sources
from effnet_ray.inference.activation_maps import class_maps, side_by_side
from effnet_ray.inference.logits import probabilities
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import LoadedRelease

FOLDER, INDEX = "_explained", "index.csv"


def explain(
    release: LoadedRelease, source: str, out: str, count: int, split: str = ""
) -> tuple[str, int]:
    """Explain the first `count` readable images; returns the folder's URI and how many there were.

    Raises DatasetError for a source without images.
    """
    folder = storage.join(storage.absolute(out), FOLDER)
    rows = list[tuple[str, str, str, str]]()
    images = image_sources.find_images(source, split)
    for path, data in (image for unit in images.units for image in images.read(unit)):
        if len(rows) == count:
            break
        explained = None if isinstance(data, ImageError) else _explain(release, data)
        if explained:
            name = f"{len(rows):05d}.png"
            label, probability, picture = explained
            storage.write_bytes(storage.join(folder, name), picture)
            rows.append((name, path, label, f"{probability:.6g}"))
    table = io.StringIO()
    csv.writer(table).writerows([("file", "path", "label", "probability"), *rows])
    storage.write_bytes(storage.join(folder, INDEX), table.getvalue().encode())
    return folder, len(rows)


@torch.no_grad()
def _explain(release: LoadedRelease, data: bytes) -> tuple[str, float, bytes] | None:
    """An image's label, its probability and the PNG; None if the image cannot be read."""
    size = release.spec.resolution
    view = np.zeros((size, size, 3), np.uint8)
    if write_eval_view(data, release.spec, view)[1]:
        return None
    logits = release.network(torch.from_numpy(view).permute(2, 0, 1)[None])
    multilabel = release.recipe.task == MULTILABEL
    (shares,) = probabilities(logits, release.calibration, multilabel=multilabel)
    best = shares.argmax()
    (class_map,) = class_maps(release.network, view[None], best[None])
    picture = side_by_side(view, class_map)
    return release.classes[int(best)], float(shares[best]), picture
