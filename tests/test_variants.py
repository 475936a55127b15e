"""The table of variants equals timm's own records."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from effnet_ray.errors import RecipeError, WeightsError
from effnet_ray.variants import DEFAULT_VARIANTS, FAMILIES, VARIANTS, variant

PAIRS = [(name, family) for name, row in VARIANTS.items() for family in row.families]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """timm's network of every variant, without memory for its parameters."""
    with torch.device("meta"):
        return {name: timm.create_model(row.architecture) for name, row in VARIANTS.items()}


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_input_spec_is_timms_pretrained_cfg(name: str, family: str) -> None:
    row = variant(name)
    spec, cfg = row.input_spec(family), timm.get_pretrained_cfg(row.weights_tag(family))
    assert (cfg.test_input_size or cfg.input_size) == (3, spec.resolution, spec.resolution)
    assert (cfg.test_crop_pct or cfg.crop_pct) == spec.crop
    assert (cfg.crop_mode, cfg.interpolation) == (spec.crop_mode, spec.interpolation)
    assert (cfg.mean, cfg.std) == (spec.mean, spec.std)
    assert cfg.num_classes == FAMILIES[family].classes
    assert spec.resolution == row.resolution


@pytest.mark.parametrize("name", VARIANTS)
def test_families_are_exactly_those_timm_has(name: str) -> None:
    row = variant(name)
    tags = {row.weights_tag(family) for family in row.families}
    assert tags == set(timm.list_pretrained(f"{row.architecture}.*"))


@pytest.mark.parametrize("name", VARIANTS)
def test_families_a_variant_lacks_are_refused(name: str) -> None:
    for family in (*(set(FAMILIES) - set(variant(name).families)), "imagenet21k", ""):
        with pytest.raises(WeightsError, match=f"'{family}' .*: choose one of"):
            variant(name).weights_tag(family)


@pytest.mark.parametrize("name", VARIANTS)
def test_best_is_a_family_of_every_variant(name: str) -> None:
    row = variant(name)
    assert row.weights_tag("best") == row.weights_tag(row.best_family)
    assert row.input_spec("best") == row.input_spec(row.best_family)


def test_best_is_the_family_with_the_highest_top1_that_timm_measured() -> None:
    """timm `results/results-imagenet.csv`, at the test size; NoisyStudent for B0 to B7."""
    top1 = {
        "v2_b3": {"in1k": 81.960, "in21k_ft": 82.634},
        "v2_s": {"in1k": 83.900, "in21k_ft": 84.332},
        "v2_m": {"in1k": 85.208, "in21k_ft": 86.014},
        "v2_l": {"in1k": 85.660, "in21k_ft": 86.802},
    }
    for name, row in VARIANTS.items():
        if name in top1:
            assert row.best_family == max(top1[name], key=top1[name].__getitem__)
        else:
            assert row.best_family == ("ns" if name in DEFAULT_VARIANTS else "in1k")


def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="'b8' is unknown: choose one of b0, b1"):
        variant("b8")


def test_a_sweep_compares_b0_to_b7_unless_it_says_otherwise() -> None:
    assert DEFAULT_VARIANTS == ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7")


def test_rows_have_the_stages_of_timms_networks(networks: dict[str, nn.Module]) -> None:
    blocks = {name: len(network.blocks) for name, network in networks.items()}  # type: ignore[arg-type]
    assert {name: row.stages for name, row in VARIANTS.items()} == blocks


def test_networks_have_the_parameters_that_timm_lists(networks: dict[str, nn.Module]) -> None:
    """Millions, timm `results/results-imagenet.csv`."""
    listed = {
        "b0": 5.29, "b1": 7.79, "b2": 9.11, "b3": 12.23, "b4": 19.34, "b5": 30.39, "b6": 43.04,
        "b7": 66.35, "lite0": 4.65, "lite1": 5.42, "lite2": 6.09, "lite3": 8.20, "lite4": 13.01,
        "v2_b0": 7.14, "v2_b1": 8.14, "v2_b2": 10.10, "v2_b3": 14.36,
        "v2_s": 21.46, "v2_m": 54.14, "v2_l": 118.52,
    }  # fmt: skip
    millions = {
        name: sum(weights.numel() for weights in network.parameters()) / 1e6
        for name, network in networks.items()
    }
    assert millions == pytest.approx(listed, abs=0.006)
    assert millions["b0"] == 5.288548


def test_the_table_of_the_page_is_that_of_the_rows(networks: dict[str, nn.Module]) -> None:
    page = (Path(__file__).parents[1] / "docs/training.md").read_text()
    for name, row in VARIANTS.items():
        millions = sum(weights.numel() for weights in networks[name].parameters()) / 1e6
        families = ", ".join(f"`{family}`" for family in row.families)
        assert f"| `{name}` | {row.resolution} | {millions:.1f} | {families} |" in page
