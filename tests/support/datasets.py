"""Packed data sets for tests: copied, opened, packed in place, with several labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.manifest import Manifest
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.recipe import Recipe


def copied(packed: Path, to: Path) -> Path:
    for path in packed.rglob("*"):
        if path.is_file():
            (to / path.relative_to(packed)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(packed)).write_bytes(path.read_bytes())
    return to


def opened(data: Path, limit: int | None = None) -> Dataset:
    recipe = Recipe(weights="none", image_size=32, batch_size=18, micro_batch=18, limit=limit)
    recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)
    spec = replace(recipe.variant_spec.input_spec(), resolution=32)
    return Dataset(manifests.load(str(data)).limited(limit), str(data), recipe, spec)


def in_place(folder: Path, **more: Any) -> Manifest:
    return pack(str(folder), str(folder), Packing(in_place=True, **more))


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
"""An image shows some of these, each as a stripe."""
SEVERAL = Packing(task="multilabel", eval_fraction=0.25)
WANTED = [["red"], ["green", "red"], [], ["blue"], ["blue", "green", "red"], ["blue", "red"]]
SMALL = Recipe(
    weights="none", image_size=32, epochs=2, batch_size=8, micro_batch=2, lr=1e-3,
    batchnorm="frozen", flip=0.0, limit=32,
)  # fmt: skip
