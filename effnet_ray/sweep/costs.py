"""What trials cost to train, as foreseen, and what their models cost to use, as measured."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import ray

from effnet_ray import phases, storage
from effnet_ray.data.manifest import Manifest
from effnet_ray.model import pretrained, profile
from effnet_ray.model.profile import Cost
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict
from effnet_ray.sweep.sweep_record import Sweep, Trial
from effnet_ray.variants import InputSpec

COSTS = "costs.json"
"""In the sweep's folder: measured once, so that a sweep's outcome stays what it was."""
Key = tuple[str, int]
"""Variant and image size, px."""


def device_seconds(recipe: Recipe, manifest: Manifest) -> float:
    """Of a full trial, as foreseen: timm's measured speed on an RTX 3090, scaled by the area.

    Real devices are faster or slower; what decides is the ratio between variants.
    """
    images = manifest.limited(recipe.limit).images
    trained = phases.cost(recipe.with_defaults, recipe.epochs) * images.get("train", 0)
    evaluated = phases.FORWARD * recipe.epochs * images.get("eval", 0)
    area = (spec(recipe).resolution / recipe.variant_spec.resolution) ** 2
    return (trained + evaluated) * area / recipe.variant_spec.train_images_per_s


def spec(recipe: Recipe) -> InputSpec:
    """What the recipe's network is shown."""
    found = pretrained.resolve(recipe).spec
    return pretrained.input_spec(recipe.resolved(found, workers=1, on_gpu=False), found)


def key(sweep: Sweep, variant: str, settings: Mapping[str, object]) -> Key:
    """What decides the cost of a trial's model."""
    return variant, spec(sweep.trial_recipe(variant, dict(settings))).resolution


def measured(
    sweep: Sweep, uri: str, classes: int, placement: Placement, keys: Iterable[Key]
) -> dict[Key, Cost]:
    """The costs of these models, the unknown ones measured where a worker would run."""
    file = storage.join(uri, COSTS)
    known: dict[Key, Cost] = {}
    if storage.exists(file):
        for variant, size, values in json.loads(storage.read_bytes(file)):
            known[variant, size] = from_dict(Cost, values)
    new = sorted(set(keys) - set(known))
    measure = ray.remote(num_cpus=0, num_gpus=placement.gpus_per_worker)(profile.measure)
    for variant, size in new:
        recipe = Recipe(variant=variant, weights="none", image_size=size)
        settled = recipe.resolved(spec(recipe), workers=1, on_gpu=False)
        known[variant, size] = ray.get(measure.remote(settled, spec(settled), classes))
    if new:
        rows = [(variant, size, asdict(value)) for (variant, size), value in known.items()]
        storage.write_bytes(file, json.dumps(rows, indent=1).encode())
    return known


def by_number(sweep: Sweep, trials: Iterable[Trial], costs: Mapping[Key, Cost]) -> dict[int, Cost]:
    """Number of a trial → what its model costs, where that was measured."""
    keys = {trial.number: key(sweep, trial.variant, trial.settings) for trial in trials}
    return {number: costs[found] for number, found in keys.items() if found in costs}
