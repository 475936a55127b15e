"""What defines a sweep: defaults that follow the data set, and those of an earlier record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effnet_ray.data import manifest as manifests
from effnet_ray.errors import RunExistsError
from effnet_ray.recipe import Recipe
from effnet_ray.sweep import space as spaces
from effnet_ray.sweep.definition import define, with_defaults
from effnet_ray.sweep.sweep_record import Sweep, as_recorded, create

RECIPE = Recipe(weights="ns", variant="b0")


def sweep_of(
    recipe: Recipe, space: dict[str, Any] | None, data: str, fixed: tuple[str, ...] = ()
) -> Sweep:
    manifest = manifests.load(data)
    return define(
        *with_defaults(recipe, space, manifest, fixed), manifest, data=data, variants=["b0"],
        trials=2, searcher="random", budget=None, name="s",
    )  # fmt: skip


def test_batch_and_rates_follow_the_number_of_train_images(digits: str) -> None:
    sweep = sweep_of(RECIPE, None, digits)
    own = RECIPE.for_images(manifests.load(digits).images["train"])
    assert (sweep.recipe.batch_size, sweep.recipe.lr) == (own.batch_size, own.lr) == (32, own.lr)
    assert sweep.space == spaces.default(own)
    fixed = sweep_of(replace(RECIPE, lr=1e-4), None, digits, fixed=("lr",))
    assert (fixed.recipe.batch_size, fixed.recipe.lr) == (64, 1e-4)
    assert "lr" not in fixed.space


@pytest.mark.parametrize("name", ["batch_size", "micro_batch", "opt"])
def test_a_searched_field_that_rates_depend_on_leaves_the_recipes_own(
    digits: str, name: str
) -> None:
    choices = {"batch_size": [16, 64], "micro_batch": [8, 16], "opt": ["adamw", "sgd"]}
    recipe = sweep_of(RECIPE, {name: choices[name]}, digits).recipe
    assert (recipe.batch_size, recipe.lr) == (64, None)


def test_a_sweep_goes_on_with_the_defaults_of_its_record(digits: str, tmp_path: Path) -> None:
    """Whatever today's are, unless they are set."""
    now = sweep_of(RECIPE, None, digits)
    before = replace(
        now, recipe=replace(now.recipe, batch_size=64, lr=None), space={"lr": "log:2e-4:5e-3"}
    )
    create(before, str(tmp_path))
    assert as_recorded(now, str(tmp_path), RECIPE, None) == before
    chosen = replace(RECIPE, batch_size=16)
    other = as_recorded(sweep_of(chosen, None, digits), str(tmp_path), chosen, None)
    with pytest.raises(RunExistsError, match="exists with other settings"):
        create(other, str(tmp_path))
