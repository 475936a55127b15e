"""Recipe and Placement are checked on construction, and survive JSON."""

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from effnet_ray.errors import RecipeError, WeightsError
from effnet_ray.placement import Placement
from effnet_ray.recipe import OPTIMIZERS, Recipe
from effnet_ray.schema import from_dict
from effnet_ray.variants import VARIANTS


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any valid recipe."""
    share = st.floats(0, 1)
    micro, lanes = draw(st.integers(1, 64)), draw(st.integers(1, 16))
    name = draw(st.sampled_from(sorted(VARIANTS)))
    families = st.sampled_from([*VARIANTS[name].families, "best", "none", "mine@v3"])
    weights = draw(families)
    parts = st.sampled_from(["all", "head", "stage:6"])
    unfreeze = "all" if weights == "none" else draw(parts)
    mixes = micro > 1 and unfreeze != "head"
    return Recipe(
        variant=name,
        weights=weights,
        image_size=draw(st.none() | st.integers(32, 1024)),
        batch_size=micro * lanes,
        micro_batch=draw(st.none() | st.just(micro)),
        lr=draw(st.floats(1e-8, 10)),
        epochs=draw(st.integers(1, 50)),
        eval_every=draw(st.integers(1, 60)),
        unfreeze=unfreeze,
        head_views=draw(st.integers(1, 4)),
        head_cache=draw(st.booleans()),
        opt=draw(st.sampled_from(sorted(OPTIMIZERS))),
        layer_decay=draw(st.none() | st.floats(0.1, 1)),
        aa=draw(st.sampled_from(["none", "auto", "trivial", "rand", "rand-m30-n9"])),
        ema_decay=draw(st.floats(0, 0.999)),
        mixup=draw(st.floats(0, 2)) if mixes else 0.0,
        dropout=draw(st.none() | share),
        drop_path=draw(st.none() | share),
        batchnorm=draw(st.sampled_from([None, "train", "frozen"])),
        precision=draw(st.sampled_from([None, "float32", "bfloat16", "float16"])),
        layout=draw(st.sampled_from([None, "channels_last", "contiguous"])),
        compile=draw(st.sampled_from([None, True, False])),
        flip=draw(share),
        class_weights=draw(st.sampled_from(["none", "balanced", "sqrt"])),
        balance=draw(share),
        limit=draw(st.none() | st.integers(1, 10**6)),
        seed=draw(st.integers(0, 2**31)),
    )


@given(recipes())
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert from_dict(Recipe, json.loads(json.dumps(asdict(recipe)))) == recipe


def test_a_placement_survives_json() -> None:
    placement = Placement(workers="1:4", decode_tasks=3, audit=True)
    assert from_dict(Placement, json.loads(json.dumps(asdict(placement)))) == placement


@given(recipes(), st.integers(1, 64), st.booleans())
def test_settling_decides_everything_and_changes_nothing_given(
    recipe: Recipe, workers: int, on_gpu: bool
) -> None:
    settled = recipe.resolved(recipe.variant_spec.input_spec(), workers=workers, on_gpu=on_gpu)
    unset = {name for name, value in asdict(settled).items() if value is None}
    assert unset <= {"limit", "teacher"}
    assert recipe.differences(settled) == ""
    assert settled.lanes * (settled.micro_batch or 0) == settled.batch_size


@given(recipes(), st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_a_settled_recipe_is_settled_wherever_it_runs(
    recipe: Recipe, workers: int, others: int, on_gpu: bool
) -> None:
    spec = recipe.variant_spec.input_spec()
    settled = recipe.resolved(spec, workers=workers, on_gpu=on_gpu)
    assert settled.resolved(spec, workers=others, on_gpu=not on_gpu) == settled


@given(recipes(), st.integers(1, 64))
def test_a_chosen_micro_batch_leaves_a_lane_for_every_worker(recipe: Recipe, workers: int) -> None:
    settled = recipe.resolved(recipe.variant_spec.input_spec(), workers=workers, on_gpu=False)
    if recipe.micro_batch is None and not recipe.mixup:
        assert settled.lanes >= min(workers, settled.batch_size)


def test_batchnorm_is_frozen_for_pretrained_weights_and_trains_from_scratch() -> None:
    chosen = {
        weights: Recipe(weights=weights)
        .resolved(VARIANTS["b0"].input_spec(), workers=1, on_gpu=False)
        .batchnorm
        for weights in ("best", "aa", "mine@v3", "none")
    }
    assert chosen == {"best": "frozen", "aa": "frozen", "mine@v3": "frozen", "none": "train"}


@given(recipes(), recipes())
def test_recipes_that_disagree_name_every_field_that_differs(a: Recipe, b: Recipe) -> None:
    theirs = b.resolved(b.variant_spec.input_spec(), workers=1, on_gpu=False)
    named = {part.split(" ")[0] for part in a.differences(theirs).split("), ") if part}
    mine, recorded = asdict(a.with_defaults), asdict(theirs)
    assert named == {
        n for n in mine if mine[n] != recorded[n] and (n == "limit" or mine[n] is not None)
    }
    assert (a.differences(theirs) == "") == (not named)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_an_unknown_field_is_refused_with_the_nearest_name(field: str) -> None:
    with pytest.raises(RecipeError, match=f"no field '{field}x': did you mean '{field}'"):
        from_dict(Recipe, {f"{field}x": 1})


def test_a_field_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(RecipeError, match="no field 'zzzz': expected one of variant, weights"):
        from_dict(Recipe, {"zzzz": 1})


BAD: list[tuple[str, Any]] = [
    ("variant", "b8"),
    ("image_size", 31),
    ("epochs", 0),
    ("eval_every", 0),
    ("batch_size", 0),
    ("micro_batch", 0),
    ("micro_batch", 48),  # no divisor of 64
    ("weight_decay", -0.1),
    ("warmup_epochs", -1.0),
    ("batchnorm", "off"),
    ("head_epochs", -1),
    ("head_epochs", 11),  # more than epochs
    ("unfreeze", "stage:8"),
    ("unfreeze", "stage:0"),
    ("unfreeze", "top"),
    ("opt", "adamax"),
    ("sched", "step"),
    ("class_weights", "inverse"),
    *(("aa", bad) for bad in ("", "augmix", "rand-m31", "rand-n0", "rand-n2-m3", "Auto")),
    ("patience", -1),
    *((n, bad) for n in ("momentum", "ema_decay") for bad in (-0.1, 1.0, math.nan)),
    *((n, bad) for n in ("mixup", "cutmix", "clip_grad") for bad in (-1.0, math.inf)),
    ("layer_decay", 0.0),
    ("head_lr", 0.0),
    ("precision", "float8"),
    ("layout", "nhwc"),
    ("crop_scale", 0.0),
    ("crop_scale", 1.1),
    ("crop_ratio", 0.9),
    ("limit", 0),
    ("seed", -1),
    *(("lr", bad) for bad in (0.0, -1.0, math.inf, math.nan)),
    *(
        (n, bad)
        for n in ("label_smoothing", "dropout", "drop_path", "flip", "reprob", "balance")
        for bad in (-0.1, 1.1, math.nan)
    ),
    *((n, math.nan) for n in ("weight_decay", "flip", "crop_scale", "crop_ratio")),
    *((n, math.inf) for n in ("weight_decay", "warmup_epochs", "crop_ratio")),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"^{field} .*{value}"):
        Recipe(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_a_json_value_of_a_wrong_type_is_refused_by_name(field: str) -> None:
    for value in ([1], {"a": 1}):
        with pytest.raises(RecipeError, match=field):
            from_dict(Recipe, {field: value})


@pytest.mark.parametrize("field", ["epochs", "batch_size", "image_size", "limit", "seed"])
def test_a_count_that_is_no_whole_number_is_refused_by_name(field: str) -> None:
    for value in ("64", 64.5):
        with pytest.raises(RecipeError, match=field):
            from_dict(Recipe, {field: value})


def test_what_follows_from_the_recipe_alone_is_no_agreement() -> None:
    """The same command without --lr asks for the default, not for whatever was recorded."""
    spec = VARIANTS["b0"].input_spec()
    recorded = Recipe(weights="ns", lr=0.1).resolved(spec, workers=2, on_gpu=True)
    assert "lr 0.001 (recorded: 0.1)" in Recipe(weights="ns").differences(recorded)
    default = Recipe(weights="ns").resolved(spec, workers=2, on_gpu=True)
    assert Recipe(weights="ns").differences(default) == ""


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_each_optimizer_has_its_own_rate_and_decay(opt: str) -> None:
    given = Recipe(weights="ns", opt=opt, lr=0.3, weight_decay=0.0).with_defaults
    assert (given.lr, given.weight_decay, given.head_lr) == (0.3, 0.0, pytest.approx(3.0))
    factor, weight_decay = OPTIMIZERS[opt]
    decided = Recipe(weights="none", opt=opt).with_defaults
    assert (decided.lr, decided.weight_decay) == (pytest.approx(factor * 1e-3), weight_decay)


def test_the_heads_rate_is_lr_where_nothing_else_learns() -> None:
    assert Recipe(weights="ns", unfreeze="head", lr=0.01).with_defaults.head_lr == 0.01
    assert Recipe(weights="ns", unfreeze="head").with_defaults.head_lr == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("dials", "says"),
    [
        ({"opt": "sgd", "momentum": 0.0}, "momentum is 0.0: expected above 0 for sgd"),
        (
            {"mixup": 0.2, "micro_batch": 1},
            "micro_batch is 1: expected 2 or more with mixup or cutmix",
        ),
        ({"cutmix": 1.0, "batch_size": 1}, "2 or more with mixup or cutmix"),
        ({"unfreeze": "head", "head_epochs": 2}, "expected all 10 epochs when unfreeze is head"),
    ],
)
def test_dials_that_contradict_each_other_are_refused(dials: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe(weights="ns", **dials)


def test_mixing_leaves_two_images_a_lane_at_least() -> None:
    recipe = Recipe(weights="none", mixup=0.2, batch_size=8)
    spec = VARIANTS["b0"].input_spec()
    assert recipe.resolved(spec, workers=8, on_gpu=False).micro_batch == 2


@pytest.mark.parametrize(
    ("dials", "needs"),
    [({}, False), ({"class_weights": "sqrt"}, True), ({"balance": 0.1}, True)],
)
def test_labels_are_needed_only_by_dials_that_are_on(dials: dict[str, Any], needs: bool) -> None:
    assert Recipe(**dials).needs_labels == needs


@pytest.mark.parametrize("dials", [{"head_epochs": 1}, {"unfreeze": "head"}])
def test_a_backbone_that_knows_nothing_is_not_kept_frozen(dials: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="expected pretrained weights if parts"):
        Recipe(weights="none", **dials)


@pytest.mark.parametrize(
    ("name", "family"), [("b0", "ns"), ("lite0", "in1k"), ("v2_s", "in21k_ft")]
)
def test_best_weights_follow_the_variant_until_the_recipe_is_resolved(
    name: str, family: str
) -> None:
    recipe = replace(Recipe(), variant=name)
    assert (recipe.weights, recipe.with_family.weights) == ("best", family)
    assert recipe.with_defaults.weights == family
    resolved = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)
    assert resolved.weights == family and not recipe.differences(resolved)


def test_stages_are_those_of_the_variant() -> None:
    assert Recipe(variant="v2_b0", unfreeze="stage:6") and Recipe(unfreeze="stage:7")
    with pytest.raises(RecipeError, match="expected all, head, or stage:N with N from 1 to 6"):
        Recipe(variant="v2_b0", unfreeze="stage:7")


def test_weights_the_variant_does_not_have_are_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="there are no 'ra' weights for b0"):
        Recipe(variant="b0", weights="ra")


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_workers_are_a_number_or_a_range(low: int, more: int) -> None:
    assert Placement(workers=str(low)).worker_range == (low, low)
    assert Placement(workers=f"{low}:{low + more}").worker_range == (low, low + more)


@pytest.mark.parametrize(
    "workers", ["", "0", "-1", "two", "1.5", "0:2", "4:2", "1:2:3", "1:", "1:10001"]
)
def test_workers_that_are_no_range_are_refused(workers: str) -> None:
    with pytest.raises(RecipeError, match=f"^workers is '{workers}': expected N, or MIN:MAX"):
        Placement(workers=workers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpus_per_worker", -1),
        ("gpus_per_worker", math.nan),
        ("checkpoint_every", -1),
        ("keep_checkpoints", 0),
        ("max_failures", -1),
        ("decode_tasks", 0),
        ("prefetch_mb", 15),
    ],
)
def test_a_bad_placement_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"^{field} is {value}"):
        Placement(**{field: value})


@pytest.mark.parametrize(
    ("given", "images", "gpus", "batch_size", "lr"),
    [
        ({}, 30, 1, 16, 3e-4),
        ({}, 149, 1, 16, 3e-4),
        ({}, 150, 1, 16, 5e-4),
        ({}, 799, 1, 16, 5e-4),
        ({}, 800, 1, 32, 7.07e-4),
        ({}, 1600, 1, 64, 1e-3),
        ({}, 1_300_000, 1, 64, 1e-3),
        ({}, 1_300_000, 8, 512, 2.83e-3),
        ({}, 1_300_000, 6, 256, 2e-3),
        ({}, 4000, 8, 128, 1.41e-3),
        ({"opt": "sgd"}, 100, 1, 16, 6e-3),
        ({"weights": "none"}, 100, 1, 64, 1e-3),
        ({"weights": "none"}, 100_000, 2, 128, 1.41e-3),
        ({"batch_size": 8}, 100, 8, 8, 1e-3),
        ({"lr": 0.1}, 100, 8, 64, 0.1),
        ({"micro_batch": 32}, 100, 1, 64, 1e-3),
        ({"unfreeze": "head"}, 100, 1, 64, 1e-3),
    ],
    ids=str,
)
def test_batch_size_follows_images_and_gpus_and_the_rate_its_square_root(
    given: dict[str, Any], images: int, gpus: int, batch_size: int, lr: float
) -> None:
    recipe = Recipe(**({"weights": "ns"} | given))
    resolved = recipe.for_images(images, gpus).with_defaults
    assert (resolved.batch_size, resolved.lr) == (batch_size, pytest.approx(lr, rel=0.01))
    assert resolved.head == recipe.with_defaults.head


@pytest.mark.parametrize(
    ("given", "side", "size"),
    [
        ({}, 8, 96),
        ({}, 13, 128),
        ({}, 27.5, None),
        ({"variant": "b7"}, 28, 224),
        ({}, None, None),
        ({"image_size": 224}, 8, 224),
        ({"weights": "none"}, 8, None),
        ({"weights": "STORE/model/v0001"}, 8, None),
    ],
    ids=str,
)
def test_small_images_are_enlarged_less_than_to_the_weights_size(
    given: dict[str, Any], side: float | None, size: int | None
) -> None:
    recipe = Recipe(**({"weights": "ns"} | given))
    assert recipe.for_sides(side).image_size == size


@pytest.mark.parametrize(
    ("workers", "gpus_per_worker", "gpus"),
    [
        ("2", 0, 1),
        ("8", 1, 8),
        ("1:8", 1, 8),
        ("4", 0.5, 2),
        ("1", 0.5, 1),
        ("3", 0.5, 2),
        ("4", 0.3333, 2),
    ],
)
def test_a_placements_gpus_are_those_that_its_workers_use(
    workers: str, gpus_per_worker: float, gpus: int
) -> None:
    assert Placement(workers=workers, gpus_per_worker=gpus_per_worker).gpus == gpus
