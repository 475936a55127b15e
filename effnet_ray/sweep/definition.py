"""What defines a sweep: its recipe and space with the defaults for the data set, and its name."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from effnet_ray.data.manifest import Manifest
from effnet_ray.data.source_size import typical_side
from effnet_ray.recipe import Recipe
from effnet_ray.recipe_rules import BATCH_SIZE
from effnet_ray.sweep import space as spaces
from effnet_ray.sweep.sweep_record import Sweep
from effnet_ray.train.run_setup import check_run_name, for_data

RATE_DEPENDS_ON = {"batch_size", "micro_batch", "opt", "unfreeze", "weights"}
"""If one of these is searched, a rate for the number of train images would not fit all trials."""


def define(
    recipe: Recipe,
    space: Mapping[str, Any] | None,
    manifest: Manifest,
    *,
    fixed: Collection[str],
    data: str,
    variants: Sequence[str],
    trials: int,
    searcher: str,
    budget: float | None,
    name: str | None,
) -> Sweep:
    """The sweep, with the defaults that depend on the data set.

    `space`: by default `space.default` without the fields in `fixed`. The default name follows
    from what was requested, not from today's defaults, and not from the data's URI. Raises
    RecipeError if the name is not a safe folder name.
    """
    requested: dict[str, Any] = {
        "recipe": recipe.for_names | {"batch_size": recipe.batch_size or BATCH_SIZE},
        "variants": list(variants),
        "trials": trials,
        "space": {"fixed": sorted(fixed)} if space is None else dict(space),
        "searcher": searcher,
        "budget": budget,
        "fingerprint": manifest.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(requested, sort_keys=True).encode()).hexdigest()
    recipe, space = _with_defaults(recipe, space, manifest, fixed)
    return Sweep(
        name=check_run_name(name or f"sweep-{digest[:8]}"),
        recipe=recipe,
        variants=tuple(variants),
        trials=trials,
        space=dict(space),
        searcher=searcher,
        budget=budget,
        data=data,
        fingerprint=manifest.fingerprint,
        side=typical_side(manifest, data) if recipe.size_follows_images else None,
    )


def _with_defaults(
    recipe: Recipe, space: Mapping[str, Any] | None, manifest: Manifest, fixed: Collection[str]
) -> tuple[Recipe, Mapping[str, Any]]:
    """Recipe and space with the defaults that depend on the number of train images.

    Those of the recipe alone, if a field of `RATE_DEPENDS_ON` is searched.
    """
    for_images = for_data(recipe, manifest, gpus=1)
    space = spaces.default(for_images, fixed) if space is None else space
    recipe = recipe if RATE_DEPENDS_ON & space.keys() else for_images
    return replace(recipe, batch_size=recipe.batch_size or BATCH_SIZE), space
