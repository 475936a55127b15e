"""Which parameters train in which epochs, for every variant."""

from dataclasses import replace
from functools import cache

import pytest
import timm
import torch

from effnet_ray.model.network import Network, set_trainable, train_mode, trainable_parameters
from effnet_ray.phases import (
    CACHED_COST,
    cost,
    describe,
    evaluates,
    lowest_trainable,
    part_of,
    phase_at,
    phases,
    size_at,
    uses_feature_cache,
    view_at,
)
from effnet_ray.recipe import Recipe
from effnet_ray.variants import VARIANTS

TOPS = ("conv_head.", "bn2.", "classifier.")


def settled(**given: object) -> Recipe:
    recipe = Recipe(**({"weights": "best"} | given))  # type: ignore[arg-type]
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


@cache
def network(variant: str) -> Network:
    """Without memory for its parameters: their names are enough. Tests set what learns anew."""
    row = VARIANTS[variant]
    with torch.device("meta"):
        return Network(timm.create_model(row.architecture, num_classes=5), row.input_spec())


@pytest.mark.parametrize(
    ("epochs", "head_epochs"), [(1, 0), (2, 1), (3, 1), (7, 1), (8, 2), (10, 2), (40, 10)]
)
def test_a_quarter_of_the_epochs_is_a_trained_heads_where_weights_are_pretrained(
    epochs: int, head_epochs: int
) -> None:
    assert settled(epochs=epochs, head="trained").head_epochs == head_epochs
    assert settled(epochs=epochs, weights="none").head_epochs == 0
    assert settled(epochs=epochs, unfreeze="head", head="trained").head_epochs == epochs


@pytest.mark.parametrize("head_epochs", [0, 1, 3, 4])
def test_phases_cover_every_epoch_once(head_epochs: int) -> None:
    recipe = settled(epochs=4, head_epochs=head_epochs)
    covered = [epoch for phase in phases(recipe) for epoch in range(phase.first, phase.end)]
    assert covered == [0, 1, 2, 3]
    assert [phase_at(recipe, epoch).frozen for epoch in covered] == [
        epoch < head_epochs for epoch in covered
    ]


@pytest.mark.parametrize(
    ("every", "evaluated"),
    [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [1, 2, 3, 5, 6]), (4, [2, 3, 6]), (9, [2, 6])],
)
def test_every_so_many_epochs_are_evaluated_and_the_last_of_each_phase(
    every: int, evaluated: list[int]
) -> None:
    recipe = settled(epochs=7, head_epochs=3, eval_every=every)
    assert [epoch for epoch in range(7) if evaluates(recipe, epoch)] == evaluated


def test_each_phase_has_its_own_rate() -> None:
    recipe = settled(epochs=4, head_epochs=1, lr=0.3, head_lr=0.7)
    assert [phase.lr for phase in phases(recipe)] == [0.7, 0.3]


def test_the_heads_epochs_cost_a_third_where_features_are_not_kept() -> None:
    recipe = settled(epochs=8, head_epochs=3, head_cache=False)
    assert [cost(recipe, epochs) for epochs in (0, 1, 3, 4, 8)] == pytest.approx(
        [0, 1 / 3, 1, 2, 6]
    )


@pytest.mark.parametrize("views", [1, 2, 5])
def test_kept_features_cost_a_forward_pass_for_each_view(views: int) -> None:
    recipe = settled(epochs=8, head_epochs=3, head_views=views)
    once = min(views, 3) / 3
    assert [cost(recipe, epochs) for epochs in (0, 1, 3, 4)] == pytest.approx(
        [0, once + CACHED_COST, once + 3 * CACHED_COST, once + 3 * CACHED_COST + 1]
    )


def test_views_take_turns_in_the_heads_epochs_and_are_new_ones_after_them() -> None:
    recipe = settled(epochs=6, head_epochs=4, head_views=3)
    assert [view_at(recipe, epoch) for epoch in range(6)] == [None, 1, 2, None, 4, 5]
    assert [uses_feature_cache(recipe, epoch) for epoch in range(6)] == [True] * 4 + [False] * 2
    off = replace(recipe, head_cache=False)
    assert [view_at(off, epoch) for epoch in range(6)] == [None, 1, 2, None, 4, 5]
    assert not any(uses_feature_cache(off, epoch) for epoch in range(6))


def test_progressive_sizes_grow_to_the_whole_in_three_quarters_of_their_phase() -> None:
    recipe = settled(epochs=10, head_epochs=2, image_size=224, progressive=0.5)
    sizes = [size_at(recipe, epoch) for epoch in range(10)]
    assert sizes == [224, 224, 112, 128, 144, 160, 192, 208, 224, 224]
    grown = sum(min(1, 0.5 + 0.5 * n / 6) ** 2 for n in range(8))
    assert cost(recipe, 10) == pytest.approx(1 / 3 + 2 * CACHED_COST + grown)
    fixed = replace(recipe, progressive=1.0)
    assert {size_at(fixed, epoch) for epoch in range(10)} == {224}


@pytest.mark.parametrize("size", [32, 50, 96, 600])
@pytest.mark.parametrize("progressive", [0.01, 0.3, 0.99])
def test_progressive_sizes_stay_between_the_smallest_and_the_whole(
    size: int, progressive: float
) -> None:
    recipe = settled(weights="none", epochs=7, image_size=size, progressive=progressive)
    sizes = [size_at(recipe, epoch) for epoch in range(7)]
    assert sizes == sorted(sizes) and sizes[-1] == size and min(sizes) >= 32


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        ({"epochs": 8}, "a solved head, then all layers for 7 epochs"),
        (
            {"epochs": 8, "head": "trained"},
            "the head for 2 epochs, then all layers for 6 epochs",
        ),
        (
            {"epochs": 2, "unfreeze": "stage:6", "head": "trained"},
            "the head for 1 epoch, then stage 6 and above for 1 epoch",
        ),
        ({"unfreeze": "head"}, "a solved head"),
        ({"epochs": 5, "weights": "none"}, "all layers for 5 epochs"),
        ({"epochs": 5, "unfreeze": "head", "head": "trained"}, "the head for 5 epochs"),
    ],
)
def test_phases_are_told_in_words(dials: dict[str, object], words: str) -> None:
    assert describe(settled(**dials)) == words


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_part_means_the_same_for_every_variant(variant: str) -> None:
    """Stage N is timm's blocks.N-1, whatever the number of its blocks."""
    names = [name for name, _ in network(variant).backbone.named_parameters()]
    stages = VARIANTS[variant].stages
    parts = [part_of(name, stages) for name in names]
    assert parts == sorted(parts) and set(parts) == set(range(stages + 3))
    for name, part in zip(names, parts, strict=True):
        if 1 <= part <= stages:
            assert name.startswith(f"blocks.{part - 1}.")
    assert {n.split(".")[0] for n, p in zip(names, parts, strict=True) if p == 0} == {
        "conv_stem",
        "bn1",
    }


@pytest.mark.parametrize("name", ["fc.weight", "blocks.7.0.bn1.weight", "bn3.weight"])
def test_a_parameter_of_no_known_part_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a parameter"):
        part_of(name, stages=7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_learns_in_each_phase(variant: str) -> None:
    made, recipe = network(variant), settled(variant=variant, batchnorm="train")
    count = VARIANTS[variant].stages
    everything = [name for name, _ in made.backbone.named_parameters()]

    def learning(unfreeze: str) -> list[str]:
        set_trainable(made, recipe, lowest_trainable(unfreeze, count))
        return [name for name, p in made.backbone.named_parameters() if p.requires_grad]

    assert learning("head") == ["classifier.weight", "classifier.bias"]
    assert learning("all") == everything
    for stage in range(1, count + 1):
        stages = tuple(f"blocks.{n - 1}." for n in range(stage, count + 1))
        expected = [name for name in everything if name.startswith(stages + TOPS)]
        assert learning(f"stage:{stage}") == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_is_of_a_part(variant: str) -> None:
    made, recipe = network(variant), settled(variant=variant)
    head = lowest_trainable("head", VARIANTS[variant].stages)
    train_mode(made, recipe, head)
    learning = [name for name, module in made.backbone.named_modules() if module.training]
    pooling = [name for name in learning if name.startswith("global_pool.")]
    assert {*learning} - {*pooling} == {"", "blocks", "global_pool", "classifier"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_batchnorm_never_learns(variant: str) -> None:
    made, recipe = network(variant), settled(variant=variant, batchnorm="frozen")
    names = set(trainable_parameters(made, recipe, lowest_trainable("all", 7)))
    norms = {
        f"{name}.{kind}"
        for name, module in made.backbone.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert names == {name for name, _ in made.backbone.named_parameters()} - norms


def test_below_what_learns_nothing_is_dropped_and_no_statistic_moves() -> None:
    made, recipe = network("b0"), settled(batchnorm="train")
    train_mode(made, recipe, lowest_trainable("stage:6", 7))
    for name, module in made.backbone.named_modules():
        if name.startswith("blocks.") and name.count(".") >= 2:
            assert module.training == (part_of(f"{name}.", 7) >= 6)
    assert not made.backbone.bn1.training and made.backbone.bn2.training
    train_mode(made, recipe, lowest_trainable("head", 7))
    assert made.dropout.training  # what is dropped for the head
    assert not any(m.training for m in made.modules() if isinstance(m, torch.nn.BatchNorm2d))
