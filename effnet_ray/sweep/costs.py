"""What trials cost to train (estimated) and what their models cost to use (measured)."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import ray

from effnet_ray import phases, safe_json, storage
from effnet_ray.data.manifest import Manifest
from effnet_ray.model import pretrained, profile
from effnet_ray.model.profile import Cost
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict
from effnet_ray.sweep.sweep_record import Sweep, Trial
from effnet_ray.variants import InputSpec

COSTS = "costs.json"
"""File in the sweep's folder. Costs are measured once, so that a sweep's outcome never changes."""
CostKey = tuple[str, int]
"""Variant and image size in px."""


def estimated_device_seconds(recipe: Recipe, manifest: Manifest) -> float:
    """Device-seconds of a full trial, from timm's training speed on an RTX 3090.

    The speed is scaled by the image area. Other devices are faster or slower; the schedule needs
    only the ratio between variants.
    """
    images, resolved = manifest.limited(recipe.limit).images, recipe.with_defaults
    trained = phases.cost(resolved, resolved.epochs) * images.get("train", 0)
    evaluated = phases.FORWARD_COST * resolved.epochs * images.get("eval", 0)
    row = recipe.variant_spec
    area = (_input_spec(recipe).resolution / row.benchmark_resolution) ** 2
    return (trained + evaluated) * area / row.train_images_per_s


def _input_spec(recipe: Recipe) -> InputSpec:
    """The input spec of the recipe's network."""
    weights_spec = pretrained.resolve(recipe).spec
    resolved = recipe.resolved(weights_spec, workers=1, on_gpu=False)
    return pretrained.input_spec(resolved, weights_spec)


def cost_key(sweep: Sweep, variant: str, settings: Mapping[str, object]) -> CostKey:
    """What the cost of a trial's model depends on."""
    return variant, _input_spec(sweep.trial_recipe(variant, dict(settings))).resolution


def model_costs(
    sweep: Sweep, uri: str, classes: int, placement: Placement, keys: Iterable[CostKey]
) -> dict[CostKey, Cost]:
    """The costs of these models; those not yet recorded are measured where a worker would run."""
    file = storage.join(uri, COSTS)
    costs: dict[CostKey, Cost] = {}
    if storage.exists(file):
        for variant, size, values in safe_json.parse(storage.read_bytes(file)):
            costs[variant, size] = from_dict(Cost, values)
    missing = sorted(set(keys) - set(costs))
    measure = ray.remote(num_cpus=0, num_gpus=placement.gpus_per_worker or 0)(profile.measure)
    for variant, size in missing:
        recipe = Recipe(variant=variant, weights="none", image_size=size)
        spec = _input_spec(recipe)
        resolved = recipe.resolved(spec, workers=1, on_gpu=False)
        costs[variant, size] = ray.get(measure.remote(resolved, spec, classes))
    if missing:
        rows = [(variant, size, asdict(value)) for (variant, size), value in costs.items()]
        storage.write_bytes(file, json.dumps(rows, indent=1).encode())
    return costs


def costs_by_trial(
    sweep: Sweep, trials: Iterable[Trial], costs: Mapping[CostKey, Cost]
) -> dict[int, Cost]:
    """Trial number → cost of its model, where that is known."""
    keys = {trial.number: cost_key(sweep, trial.variant, trial.settings) for trial in trials}
    return {number: costs[key] for number, key in keys.items() if key in costs}


def two_digits(number: float) -> str:
    """A positive number with two significant digits, and without an exponent."""
    rounded = float(f"{number:.2g}")
    return f"{rounded:,.{max(0, 1 - math.floor(math.log10(rounded)))}f}"
