"""What defines a sweep: defaults that follow the data set, and those of an earlier record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effnet_ray.data import manifest as manifests
from effnet_ray.errors import RunExistsError
from effnet_ray.recipe import Recipe
from effnet_ray.sweep import space as spaces
from effnet_ray.sweep.definition import define
from effnet_ray.sweep.sweep_record import Sweep, as_recorded, create

RECIPE = Recipe(weights="ns", variant="b0")


def sweep_of(
    recipe: Recipe,
    space: dict[str, Any] | None,
    data: str,
    fixed: tuple[str, ...] = (),
    name: str | None = "s",
) -> Sweep:
    return define(
        recipe, space, manifests.load(data), fixed=fixed, data=data, variants=["b0"],
        trials=2, searcher="random", budget=None, name=name,
    )  # fmt: skip


def test_batch_and_rates_follow_the_number_of_train_images(digits: str) -> None:
    sweep = sweep_of(RECIPE, None, digits)
    own = RECIPE.for_images(manifests.load(digits).images["train"])
    assert (sweep.recipe.batch_size, sweep.recipe.lr) == (own.batch_size, own.lr) == (32, own.lr)
    assert sweep.space == spaces.default(own)
    fixed = sweep_of(replace(RECIPE, lr=1e-4), None, digits, fixed=("lr",))
    assert (fixed.recipe.batch_size, fixed.recipe.lr) == (64, 1e-4)
    assert "lr" not in fixed.space


@pytest.mark.parametrize("name", ["batch_size", "micro_batch", "opt", "unfreeze", "weights"])
def test_a_searched_field_that_rates_depend_on_leaves_the_recipes_own(
    digits: str, name: str
) -> None:
    choices = {
        "batch_size": [16, 64], "micro_batch": [8, 16], "opt": ["adamw", "sgd"],
        "unfreeze": ["all", "head"], "weights": ["ns", "none"],
    }  # fmt: skip
    recipe = sweep_of(RECIPE, {name: choices[name]}, digits).recipe
    assert (recipe.batch_size, recipe.lr) == (64, None)


def test_a_sweep_goes_on_with_the_defaults_of_its_record(digits: str, tmp_path: Path) -> None:
    """Whatever today's are, unless they are set."""
    now = sweep_of(RECIPE, None, digits)
    before = replace(
        now,
        recipe=replace(now.recipe, batch_size=64, lr=None),
        space={**now.space, "lr": "log:2e-4:5e-3"},
    )
    create(before, str(tmp_path))
    assert as_recorded(now, str(tmp_path), RECIPE, None) == before
    chosen = replace(RECIPE, batch_size=16)
    other = as_recorded(sweep_of(chosen, None, digits), str(tmp_path), chosen, None)
    with pytest.raises(RunExistsError, match="exists with other settings"):
        create(other, str(tmp_path))


def test_a_flag_that_fixes_a_searched_field_is_another_sweep(digits: str, tmp_path: Path) -> None:
    """Also where its value is the field's default."""
    create(sweep_of(RECIPE, None, digits), str(tmp_path))
    fixed = sweep_of(RECIPE, None, digits, fixed=("label_smoothing",))
    with pytest.raises(RunExistsError, match="exists with other settings: space"):
        create(as_recorded(fixed, str(tmp_path), RECIPE, None), str(tmp_path))


def test_the_default_name_follows_what_was_requested_not_the_defaults(
    digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(recipe: Recipe = RECIPE, fixed: tuple[str, ...] = ()) -> str:
        return sweep_of(recipe, None, digits, fixed, name=None).name

    before, slower, other = name(), name(replace(RECIPE, lr=1e-4)), name(fixed=("lr",))
    assert len({before, slower, other}) == 3
    monkeypatch.setattr("effnet_ray.recipe.FEW_IMAGES", 10_000)
    assert name() == before
