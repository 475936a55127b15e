"""The table of variants against timm's own records."""

import pytest
import timm
import torch

from effnet_ray.errors import RecipeError, WeightsError
from effnet_ray.variants import FAMILIES, VARIANTS, variant

PAIRS = [(name, family) for name, row in VARIANTS.items() for family in row.families]


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_input_spec_is_timms_pretrained_cfg(name: str, family: str) -> None:
    row = variant(name)
    spec, cfg = row.input_spec(family), timm.get_pretrained_cfg(row.weights_tag(family))
    assert cfg.input_size == (3, spec.resolution, spec.resolution)
    assert (cfg.crop_pct, cfg.interpolation) == (spec.crop, spec.interpolation)
    assert (cfg.mean, cfg.std) == (spec.mean, spec.std)


@pytest.mark.parametrize("name", VARIANTS)
def test_families_are_exactly_those_timm_has(name: str) -> None:
    row = variant(name)
    tags = {f"{row.architecture}.{FAMILIES[family][0]}" for family in row.families}
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


def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="'b8' is unknown: choose one of b0, b1"):
        variant("b8")


def test_b0_has_the_papers_parameter_count() -> None:
    with torch.device("meta"):
        network = timm.create_model(variant("b0").architecture)
    assert sum(weights.numel() for weights in network.parameters()) == 5_288_548
