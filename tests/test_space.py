"""A search space holds domains that fit the recipe's fields, or names the problem."""

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, strategies as st

from effnet_ray.errors import RecipeError
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict
from effnet_ray.sweep.space import collect, default, parse
from effnet_ray.sweep.sweep_record import with_common_family

seeds = st.integers(0, 2**32)


@given(seeds)
def test_every_draw_of_the_default_space_is_a_recipe(seed: int) -> None:
    space = parse(default(Recipe()))
    space.check(Recipe(), ["b0", "b7"])
    drawn = space.draw(Random(seed))
    assert list(drawn) == ["lr", "weight_decay", "label_smoothing", "drop_path"]
    from_dict(Recipe, drawn)


@given(seeds)
def test_draws_lie_in_their_domains(seed: int) -> None:
    space = parse({"lr": "log:1e-5:1e-2", "drop_path": "uniform:0.1:0.2", "batch_size": "int:8:9",
                   "batchnorm": "choice:train,frozen", "crop_scale": [0.2, 0.5]})  # fmt: skip
    drawn = space.draw(Random(seed))
    assert 1e-5 <= drawn["lr"] <= 1e-2 and 0.1 <= drawn["drop_path"] <= 0.2
    assert drawn["batch_size"] in (8, 9) and drawn["batchnorm"] in ("train", "frozen")
    assert drawn["crop_scale"] in (0.2, 0.5)
    assert drawn == space.draw(Random(seed))


def test_a_logarithmic_domain_favours_no_order_of_magnitude() -> None:
    random, domain = Random(0), parse({"lr": "log:1e-4:1e-2"}).domains["lr"]
    decades = [math.log10(domain.draw(random)) for _ in range(4000)]
    assert abs(sum(decade < -3 for decade in decades) / 4000 - 0.5) < 0.03


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(weights="none"), Recipe(opt="sgd"), Recipe(opt="lion", lr=1e-5),
     Recipe().for_images(60), Recipe(label_smoothing=0.0, drop_path=0.0)],
)  # fmt: skip
def test_the_default_space_contains_the_recipes_own_values(recipe: Recipe) -> None:
    own = recipe.with_defaults
    for name, domain in parse(default(recipe)).domains.items():
        low, high = domain.bounds
        assert low <= (getattr(own, name) or 0.0) <= high, name


def test_the_default_space_leaves_fixed_fields_out() -> None:
    assert set(default(Recipe(), {"lr", "drop_path"})) == {"weight_decay", "label_smoothing"}


def test_entries_and_files_make_one_space(tmp_path: Path) -> None:
    file = tmp_path / "space.json"
    file.write_text(json.dumps({"lr": "log:1e-4:1e-2", "image_size": [32, 64]}))
    space = parse(collect([str(file), "drop-path=uniform:0:0.1", "micro_batch=choice:8,none"]))
    assert list(space.domains) == ["lr", "image_size", "drop_path", "micro_batch"]
    assert space.domains["micro_batch"].choices == (8, None)


@pytest.mark.parametrize(
    ("field", "domain", "says"),
    [
        ("learning_rate", "log:1e-4:1e-2", "no field 'learning_rate': did you mean 'lr'?"),
        ("variant", "choice:b0,b1", "--variants"),
        ("epochs", "int:1:10", "--epochs"),
        ("lr", "log:1e-2:1e-4", "LOW below HIGH"),
        ("lr", "log:0:1e-4", "above 0"),
        ("lr", "log:1e-4", "expected log:LOW:HIGH"),
        ("lr", "normal:0:1", "expected log:LOW:HIGH"),
        ("lr", "uniform:0:inf", "LOW below HIGH"),
        ("lr", [], "one or more choices"),
        ("lr", [1e-3, 1e-3], "each at most once"),
        ("lr", "choice:fast,slow", "expected a number"),
        ("batch_size", "uniform:8:16", "whole numbers"),
        ("batch_size", "int:8:9.5", "whole numbers"),
        ("batchnorm", "int:0:1", "not a number"),
    ],
)
def test_a_domain_that_does_not_fit_is_refused_in_one_sentence(
    field: str, domain: object, says: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        parse({field: domain})
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(RecipeError, match="empty"):
        parse({})


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="lr twice"):
        collect(["lr=log:1e-4:1e-2", "lr=uniform:0.1:0.2"])


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="neither FIELD=DOMAIN nor a JSON file"):
        collect(["no/such.json"])
    with pytest.raises(RecipeError, match=r"^--space lr has no domain: write lr=DOMAIN, such as"):
        collect(["lr"])


def test_a_space_that_contradicts_the_recipe_or_a_variant_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"space of micro_batch for b0: .*divisor"):
        parse({"micro_batch": [7]}).check(Recipe(batch_size=64), ["b0"])
    with pytest.raises(RecipeError, match=r"space of batchnorm for b0: .*train, frozen or sync"):
        parse({"batchnorm": "choice:thawed"}).check(Recipe(), ["b0"])
    with pytest.raises(RecipeError, match="space of weights for b0"):
        parse({"weights": ["ra", "ns"]}).check(Recipe(), ["b0"])
    parse({"weights": ["ra", "ns"]}).check(Recipe(), ["b5", "b7"])


def test_a_sweep_records_the_best_family_if_all_variants_have_the_same() -> None:
    assert with_common_family(Recipe(), ["b1", "b7"]).weights == "ns"
    assert with_common_family(Recipe(weights="aa"), ["b0", "b7"]).weights == "aa"
    mixed = with_common_family(Recipe(), ["v2_s", "lite0"])
    assert mixed.weights == "best"
    parse(default(mixed)).check(mixed, ["v2_s", "lite0"])
    assert replace(mixed, variant="v2_s").with_defaults.weights == "in21k_ft"


def test_choices_that_contradict_each_other_are_refused_before_a_trial() -> None:
    space = parse({"weights": ["ns", "none"], "unfreeze": ["all", "head"]})
    with pytest.raises(RecipeError, match="space with weights none, unfreeze head: weights is"):
        space.check(Recipe(weights="ns"), ["b0"])


def test_a_choice_that_contradicts_a_range_is_refused_before_a_trial() -> None:
    contradicting = parse({"head": ["trained", "solved"], "head_epochs": "int:1:3"})
    with pytest.raises(RecipeError, match="space with head solved, head_epochs 3: head_epochs"):
        contradicting.check(Recipe(), ["b0"])
