"""Shared by tests: opened."""

from dataclasses import replace
from pathlib import Path

from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Dataset
from effnet_ray.recipe import Recipe


def opened(data: Path, limit: int | None = None) -> Dataset:
    recipe = Recipe(weights="none", image_size=32, batch_size=18, micro_batch=18, limit=limit)
    recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)
    spec = replace(recipe.variant_spec.input_spec(), resolution=32)
    return Dataset(manifests.load(str(data)).limited(limit), str(data), recipe, spec)
