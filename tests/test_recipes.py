"""The ready recipes are valid, and README names each."""

import json
from pathlib import Path

import pytest

from effnet_ray.phases import describe, phases
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict

FOLDER = Path(__file__).parents[1] / "recipes"
FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_ready_recipe_is_one_and_is_explained(file: Path) -> None:
    recipe = from_dict(Recipe, json.loads(file.read_text()))
    assert phases(
        recipe.resolved(recipe.variant_spec.input_spec(recipe.weights), workers=1, on_gpu=True)
    )
    assert f"`{file.name}`" in (FOLDER / "README.md").read_text()


def test_kerass_phases_and_rates_are_kerass() -> None:
    recipe = from_dict(Recipe, json.loads((FOLDER / "keras-dogs.json").read_text()))
    recipe = recipe.resolved(recipe.variant_spec.input_spec("aa"), workers=1, on_gpu=True)
    assert describe(recipe) == "the head for 25 epochs, then stage 7 and above for 4 epochs"
    assert [phase.lr for phase in phases(recipe)] == [1e-2, 1e-5]
