"""What a sweep supports."""

from collections.abc import Mapping, Sequence
from typing import Any

from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import RecipeError
from effnet_ray.recipe import MULTILABEL, SYNC, Recipe
from effnet_ray.schema import require
from effnet_ray.sweep.searchers import check_searcher
from effnet_ray.sweep.space import parse
from effnet_ray.sweep.variant_schedule import check_trials
from effnet_ray.variants import VARIANTS, variant


def check(
    recipe: Recipe,
    variants: Sequence[str],
    space: Mapping[str, Any],
    *,
    trials: int,
    searcher: str,
    budget: float | None,
) -> None:
    """Raises RecipeError for settings that a sweep does not support."""
    if not variants or len(set(variants)) < len(variants):
        raise RecipeError(
            f"variants is {','.join(variants)!r}: expected one or more of {', '.join(VARIANTS)}, "
            "each at most once"
        )
    for name in variants:
        variant(name)  # raises RecipeError for an unknown one
    if recipe.patience or "patience" in space:
        raise RecipeError(
            "a sweep does not support patience: ASHA stops its trials early; remove the setting"
        )
    if recipe.eval_every > 1 or "eval_every" in space:
        raise RecipeError(
            "a sweep does not support eval_every above 1: it compares trials after every epoch; "
            "remove the setting"
        )
    if SYNC in (recipe.batchnorm, *str(space.get("batchnorm", "")).replace(":", ",").split(",")):
        raise RecipeError(
            "a sweep does not support batchnorm sync: the number of workers per trial depends on "
            "the cluster's free resources; choose train or frozen"
        )
    parse(space).check(recipe, variants)
    check_trials(trials, variants)
    check_searcher(searcher)
    require(budget is None or budget > 0, "budget", budget, "above 0")


def check_task(recipe: Recipe, manifest: Manifest) -> None:
    """Raises RecipeError for images with any number of labels."""
    if MULTILABEL in (recipe.task, manifest.task):
        raise RecipeError(
            "a sweep does not support task multilabel: it ranks trials by top-1 accuracy, which "
            "needs one class per image; use finetune instead"
        )
