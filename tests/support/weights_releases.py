"""Shared by tests: released."""

import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from effnet_ray.model import pretrained
from effnet_ray.model.network import Network, build
from effnet_ray.recipe import Recipe
from effnet_ray.release_format import layout
from effnet_ray.variants import CENTER, INCEPTION

CLASSES = ("cat", "dog", "émeu")


def settled(**given: object) -> Recipe:
    recipe = Recipe(**({"image_size": 32, "seed": 7} | given))  # type: ignore[arg-type]
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


def released(
    folder: Path, variant: str = "b0", size: int = 48, crop_mode: str = CENTER
) -> tuple[Network, Path]:
    """A network and its release folder, such as the store writes."""
    recipe = settled(variant=variant, weights="none", image_size=size, seed=1)
    mean, std = INCEPTION
    spec = replace(
        recipe.variant_spec.input_spec(),
        resolution=size,
        crop=0.77,
        mean=mean,
        std=std,
        crop_mode=crop_mode,
    )
    network = build(recipe, spec, len(CLASSES)).eval()
    folder.mkdir()
    config = pretrained.hub_config(network, spec, CLASSES)
    (folder / layout.CONFIG).write_text(json.dumps(config))
    save_file(
        {name: t.contiguous() for name, t in network.backbone.state_dict().items()},
        folder / layout.WEIGHTS,
    )
    return network, folder
