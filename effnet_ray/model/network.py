"""The network: uint8 images in, logits out. It normalises the images itself, on its device."""

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from effnet_ray.model.batchnorm import batchnorms
from effnet_ray.model.dropout import Drop, replace_drop_paths
from effnet_ray.phases import lowest_trainable, part_of
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.variants import CHANNELS_LAST, CONTIGUOUS, InputSpec

if TYPE_CHECKING:
    from timm.models import EfficientNet

MEMORY_FORMATS = {CHANNELS_LAST: torch.channels_last, CONTIGUOUS: torch.contiguous_format}
"""torch's memory format for each layout."""

WITHOUT_TRAIN_MODE = ("", "blocks", "global_pool")
"""Modules of timm's EfficientNet that belong to no part: training mode changes nothing in them."""


def fix_order_of_sums() -> None:
    """Make sums of this process independent of memory alignment; call before any computation.

    MKL otherwise adds numbers in an order that depends on it, and with several threads a resumed
    run is not bit-equal. MKL reads the variable at its first call; AUTO has no measurable cost
    (MKL's "conditional numerical reproducibility").
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


class Network(nn.Module):
    """timm's EfficientNet with input normalisation and our dropout."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: "EfficientNet",
        spec: InputSpec,
        layout: str = CHANNELS_LAST,
        dropout: float = 0.0,
    ) -> None:
        """`dropout`: before the head, in place of the backbone's own, which must be 0."""
        super().__init__()
        self.layout = layout
        self.backbone = backbone.to(memory_format=MEMORY_FORMATS[layout])
        self.dropout = Drop(dropout, per_image=False)
        self._drop_paths = [m for m in backbone.modules() if isinstance(m, Drop)]
        scale = torch.tensor([spec.mean, spec.std]).view(2, 1, 3, 1, 1) * 255
        self.register_buffer("mean", scale[0], persistent=False)
        self.register_buffer("std", scale[1], persistent=False)

    @property
    def num_classes(self) -> int:
        """K, the number of logits."""
        return int(self.backbone.num_classes)

    @property
    def noise(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of pixel values (0 to 255), [1, 3, 1, 1]."""
        return self.mean, self.std

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [B, F] of images [B, 3, R, R], 0 to 255: uint8, or floats if mixed."""
        pooled: Tensor = self.backbone.global_pool(self.feature_maps(images))
        return pooled

    def feature_maps(self, images: Tensor) -> Tensor:
        """Feature maps [B, F, R / 32, R / 32] of images [B, 3, R, R].

        The images are laid out in memory as the weights are: convolutions would otherwise use
        channels_last if either of the two does.
        """
        images = images.contiguous(memory_format=MEMORY_FORMATS[self.layout])
        maps: Tensor = self.backbone.forward_features((images - self.mean) / self.std)
        return maps

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, R, R] or of their features [B, F]."""
        return self.features_and_logits(inputs)[1]

    def features_and_logits(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] and logits [B, K] of images [B, 3, R, R] or of their features [B, F]."""
        features = inputs.float() if inputs.ndim == 2 else self.features(inputs)
        logits: Tensor = self.backbone.classifier(self.dropout(features))
        return features, logits

    @property
    def num_features(self) -> int:
        """F, the number of features of an image."""
        return int(self.backbone.num_features)

    @property
    def active_drop_paths(self) -> list[Drop]:
        """The drop paths that drop anything, in the order of the forward pass."""
        return [drop for drop in self._drop_paths if drop.is_active]


def build(
    recipe: Recipe,
    spec: InputSpec,
    num_classes: int,
    *,
    weights_file: str | None = None,
    weights_classes: int = 1000,
) -> Network:
    """The network of a resolved recipe; a new head is initialised from the recipe's seed.

    `weights_file` is a safetensors file with timm's names, whose head has `weights_classes`
    outputs; timm leaves that head out if `num_classes` differs.
    """
    import timm  # takes seconds; drivers and Ray Train's controllers build no network

    torch.manual_seed(recipe.seed)
    overlay = {"file": weights_file, "num_classes": weights_classes, "custom_load": False}
    backbone = timm.create_model(
        recipe.variant_spec.architecture,
        pretrained=weights_file is not None,
        pretrained_cfg_overlay=overlay if weights_file else None,
        num_classes=num_classes,
        drop_path_rate=recipe.drop_path,
    )
    replace_drop_paths(backbone)
    for module in backbone.modules():
        if isinstance(module, torch.nn.SiLU):
            module.inplace = False  # in place, autograd would copy every input for the gradient
    if recipe.batchnorm == SYNC:
        backbone = timm.layers.convert_sync_batchnorm(backbone)  # PyTorch's; names stay the same
    network = Network(backbone, spec, recipe.layout or CHANNELS_LAST, recipe.dropout or 0.0)
    lowest_part = lowest_trainable(recipe.unfreeze, recipe.variant_spec.stages)
    set_trainable(network, recipe, lowest_part)
    return network


def trainable_parameters(
    network: Network, recipe: Recipe, lowest_part: int
) -> dict[str, nn.Parameter]:
    """The parameters, by timm's names, that are trained from part `lowest_part` up."""
    stages = recipe.variant_spec.stages
    frozen_layers = batchnorms(network) if recipe.batchnorm == "frozen" else []
    frozen = {id(parameter) for layer in frozen_layers for parameter in layer.parameters()}
    return {
        name: parameter
        for name, parameter in network.backbone.named_parameters()
        if part_of(name, stages) >= lowest_part and id(parameter) not in frozen
    }


def set_trainable(network: Network, recipe: Recipe, lowest_part: int) -> list[nn.Parameter]:
    """Make exactly the parts from `lowest_part` up require gradients; return their parameters."""
    network.requires_grad_(False)
    parameters = list(trainable_parameters(network, recipe, lowest_part).values())
    for parameter in parameters:
        parameter.requires_grad_()
    return parameters


def train_mode(network: Network, recipe: Recipe, lowest_part: int) -> None:
    """Set training mode for the parts from `lowest_part` up and evaluation mode below.

    This concerns dropout, drop path, and BatchNorm unless the recipe freezes it.
    """
    network.train()
    stages = recipe.variant_spec.stages
    for name, module in network.backbone.named_modules():
        if name in WITHOUT_TRAIN_MODE or name.startswith("global_pool."):
            continue
        below = part_of(f"{name}.", stages) < lowest_part
        if below or (recipe.batchnorm == "frozen" and isinstance(module, nn.BatchNorm2d)):
            module.training = False  # only this module's flag, not its children's
