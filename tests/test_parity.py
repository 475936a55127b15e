"""Our networks give the logits of torchvision's, which were written independently."""

import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from effnet_ray.variants import DEFAULT_VARIANTS, VARIANTS

KERAS_TRAINABLE = {
    "b0": 5_288_548, "b1": 7_794_184, "b2": 9_109_994, "b3": 12_233_232, "b4": 19_341_616,
    "b5": 30_389_784, "b6": 43_040_704, "b7": 66_347_960,
}  # fmt: skip
"""Trainable parameters of keras.applications.EfficientNetB0 … B7, counted with keras 3.15.1."""


def theirs(variant: str) -> nn.Module:
    """torchvision's, with TensorFlow's epsilon in its norms."""
    network: nn.Module = getattr(torchvision.models, f"efficientnet_{variant}")()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
    return network


@pytest.mark.parametrize("variant", DEFAULT_VARIANTS)
def test_as_many_parameters_learn_as_in_timm_keras_and_torchvision(variant: str) -> None:
    with torch.device("meta"):
        ours = timm.create_model(VARIANTS[variant].architecture)
    counts = sum(p.numel() for p in ours.parameters())
    weights = getattr(torchvision.models, f"EfficientNet_{variant.upper()}_Weights").DEFAULT
    assert counts == KERAS_TRAINABLE[variant] == weights.meta["num_params"]


LARGE = {"b4", "b5", "b6"}
"""Take half a minute of CPU together; the largest of all stays in `make test`."""


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in LARGE else [])
        for name in DEFAULT_VARIANTS
    ],
)
def test_logits_are_torchvisions_with_the_same_weights(variant: str) -> None:
    """At 65 px all strided layers see odd sizes, where TensorFlow's padding is symmetric.

    Both list their tensors from input to output, so one's fit the other in that order.
    """
    torch.manual_seed(0)
    ours, other = timm.create_model(VARIANTS[variant].architecture), theirs(variant)
    for name, tensor in ours.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif re.search(r"bn\d\.weight", name):
            tensor.uniform_(0.5, 1.5)
    mine, keys = list(ours.state_dict().values()), list(other.state_dict())
    assert [t.shape for t in mine] == [t.shape for t in other.state_dict().values()]
    other.load_state_dict(dict(zip(keys, mine, strict=True)))
    images = torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        result, expected = ours.eval()(images), other.eval()(images)
    assert expected.std() > 0
    assert torch.allclose(result / expected.std(), expected / expected.std(), atol=1e-4)


@pytest.mark.parametrize("variant", ["v2_s", "v2_m", "v2_l"])
def test_as_many_parameters_learn_in_v2_as_in_torchvision(variant: str) -> None:
    with torch.device("meta"):
        ours = timm.create_model(VARIANTS[variant].architecture)
    weights = getattr(torchvision.models, f"EfficientNet_{variant.upper()}_Weights").DEFAULT
    assert sum(p.numel() for p in ours.parameters()) == weights.meta["num_params"]


@pytest.mark.parametrize("variant", DEFAULT_VARIANTS)
def test_drop_path_rises_over_the_blocks_as_torchvisions(variant: str) -> None:
    """And with it the number of blocks is the paper's."""
    with torch.device("meta"):
        ours = timm.create_model(VARIANTS[variant].architecture, drop_path_rate=0.2)
        other = theirs(variant)
    mine = [getattr(block.drop_path, "drop_prob", 0.0) for stage in ours.blocks for block in stage]
    kinds = [m for m in other.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert mine == pytest.approx([layer.p for layer in kinds])
