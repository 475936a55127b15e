"""The rules that several fields of a Recipe must follow together."""

from dataclasses import fields

from effnet_ray.recipe_fields import RecipeFields
from effnet_ray.recipe_rules import BATCH_SIZE, MULTILABEL, SOLVED, SYNC, check_fields
from effnet_ray.schema import require
from effnet_ray.variants import FAMILIES


def check(recipe: RecipeFields) -> None:
    """Raises RecipeError or WeightsError for the first value that is not allowed."""
    if recipe.weights in FAMILIES:
        recipe.variant_spec.weights_tag(recipe.weights)
    check_fields(recipe)
    _check_unfreeze(recipe)
    _check_batches(recipe)
    _check_combinations(recipe)
    _check_solved_head(recipe)
    _check_teacher(recipe)


def _check_unfreeze(recipe: RecipeFields) -> None:
    stages = recipe.variant_spec.stages
    choices = ("all", "head", *(f"stage:{stage}" for stage in range(1, stages + 1)))
    require(
        recipe.unfreeze in choices,
        "unfreeze",
        recipe.unfreeze,
        f"all, head, or stage:N with N from 1 to {stages}",
    )


def _check_batches(recipe: RecipeFields) -> None:
    micro_batch, head_epochs, epochs = recipe.micro_batch, recipe.head_epochs, recipe.epochs
    batch_size = recipe.batch_size or BATCH_SIZE
    require(
        micro_batch is None or batch_size % micro_batch == 0,
        "micro_batch",
        micro_batch,
        f"a divisor of batch_size {batch_size}",
    )
    require(
        head_epochs is None or head_epochs <= epochs,
        "head_epochs",
        head_epochs,
        f"at most epochs, {epochs}",
    )
    require(
        recipe.unfreeze != "head" or head_epochs in (None, epochs),
        "head_epochs",
        head_epochs,
        f"all {epochs} epochs when unfreeze is head",
    )
    require(
        not recipe.mixes or min(batch_size, micro_batch or 2) > 1,
        "micro_batch",
        micro_batch,
        "2 or more with mixup or cutmix",
    )


def _check_combinations(recipe: RecipeFields) -> None:
    require(
        recipe.unfreeze != "head" or not (recipe.mixes or recipe.reprob > 0),
        "unfreeze",
        "head",
        "all or stage:N with mixup, cutmix or reprob: they do not apply while only the head "
        "is trained",
    )
    require(
        recipe.opt != "sgd" or recipe.momentum > 0,
        "momentum",
        recipe.momentum,
        "above 0 for sgd, which uses Nesterov momentum",
    )
    require(
        recipe.task != MULTILABEL or not recipe.needs_labels,
        "task",
        recipe.task,
        "multiclass with class_weights or balance: they need exactly one class per image",
    )
    require(
        recipe.batchnorm != SYNC or not recipe.compile,
        "compile",
        recipe.compile,
        "False when batchnorm is sync",
    )
    trains_everything = not recipe.head_epochs and recipe.unfreeze == "all"
    require(
        trains_everything or recipe.weights != "none",
        "weights",
        "none",
        "pretrained weights if parts of the network stay frozen (head_epochs, unfreeze)",
    )


def _check_solved_head(recipe: RecipeFields) -> None:
    if recipe.head != SOLVED:
        return
    require(
        recipe.weights != "none",
        "head",
        recipe.head,
        "trained without pretrained weights",
    )
    require(
        recipe.head_cache and recipe.head_views == 1 and recipe.head_epochs != 0,
        "head",
        recipe.head,
        "trained if head_cache is off, head_views is above 1 or head_epochs is 0",
    )
    require(
        recipe.head_epochs in (None, 1),
        "head_epochs",
        recipe.head_epochs,
        "1 for a solved head",
    )


def _check_teacher(recipe: RecipeFields) -> None:
    for item in fields(recipe):
        if item.name in ("teacher_weight", "teacher_temperature"):
            value = getattr(recipe, item.name)
            require(
                recipe.teacher is not None or value == item.default,
                item.name,
                value,
                "a teacher, too",
            )
