"""The random draws of a step: for erasing, mixing, dropout and drop path.

Every lane's draws are seeded by (seed, step, lane), whichever worker has it and however many
images are computed at once. All but the noise and dropout's mask are drawn on the CPU and sent to
the device in one copy, which nothing waits for.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.mixup import (
    ERASED,
    MIXED,
    PARAMETERS,
    MixedImages,
    draw_erased,
    draw_mix,
    erase,
    mix,
)


@dataclass(frozen=True, slots=True)
class Draws:
    """All that is drawn for a worker's images in one step, in the order of the images."""

    parameters: Tensor
    """[PARAMETERS, B]: what `mixup` draws."""
    partner: Tensor
    """[B] int64: index of the image that may be mixed in, from the other end of its lane."""
    noise: Tensor | None
    """[B, 3, R, R]: standard normal values for erased boxes; None if nothing is erased."""
    drop_paths: Tensor
    """[D, B]: factor on each image's branch in each of the D drop paths that are active."""
    dropout: Tensor | None
    """[B, F]: factor on each feature; None without dropout."""

    @classmethod
    def of(cls, network: Network, recipe: Recipe, batch: Batch, step: int, *, mixes: bool) -> Self:
        """Draw for every lane of a batch; `mixes`: images are augmented, not their features."""
        device, first = batch.image.device, 0
        drawn, noise, dropout = list[Tensor](), list[Tensor](), list[Tensor]()
        for lane in batch.lanes:
            torch.manual_seed(lane_seed(recipe.seed, step, lane.index))
            parameters = torch.zeros(PARAMETERS, lane.rows)
            if mixes:
                _draw_augmentation(recipe, batch.image, parameters, noise)
            partner = torch.arange(first + lane.rows - 1.0, first - 1.0, -1.0)
            cpu = torch.device("cpu")
            kept = [drop.draw(lane.rows, device=cpu) for drop in network.active_drop_paths]
            drawn.append(torch.stack([*parameters, partner, *kept]))
            if network.dropout.is_active:
                shape = lane.rows, network.num_features
                dropout.append(network.dropout.draw(*shape, device=device))
            first += lane.rows
        values = to_device(torch.cat(drawn, 1), device)
        return cls(
            values[:PARAMETERS],
            values[PARAMETERS].long(),
            torch.cat(noise) if noise else None,
            values[PARAMETERS + 1 :],
            torch.cat(dropout) if dropout else None,
        )

    def augment(self, recipe: Recipe, batch: Batch, mean: Tensor, std: Tensor) -> MixedImages:
        """Erase and mix a batch's images by the recipe.

        `mean` and `std` [1, 3, 1, 1] are those of erased boxes, 0 to 255. Image i of a lane of n
        is mixed with its image n - 1 - i; the middle one of an odd number is not mixed.
        """
        image = batch.image
        if self.noise is not None:
            image = erase(image, self.parameters, mean + std * self.noise)
        if not (recipe.mixup or recipe.cutmix):
            return MixedImages(image, batch.weight)
        return mix(image, batch.target, batch.weight, self.parameters, self.partner)

    def set_masks(self, network: Network, first: int, rows: int) -> None:
        """Set the masks of the network's dropout and drop paths to those of some images."""
        end = first + rows
        network.dropout.mask = None if self.dropout is None else self.dropout[first:end]
        for drop, factors in zip(network.active_drop_paths, self.drop_paths, strict=True):
            drop.mask = factors[first:end].view(-1, 1, 1, 1)


def _draw_augmentation(
    recipe: Recipe, image: Tensor, parameters: Tensor, noise: list[Tensor]
) -> None:
    """Fill a lane's parameters, and append its noise."""
    rows, size = parameters.shape[1], image.shape[-1]
    if recipe.reprob:
        parameters[ERASED] = draw_erased(recipe.reprob, rows, size)
        shape = rows, *image.shape[1:]
        layout = torch.channels_last  # the order in which the values are drawn
        noise.append(torch.empty(shape, device=image.device, memory_format=layout).normal_())
    if recipe.mixup or recipe.cutmix:
        parameters[MIXED] = draw_mix(recipe, rows, size)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device. Copies from pinned memory are only queued."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def lane_seed(seed: int, step: int, lane: int) -> int:
    """Seed, of 63 bits, for every random draw of a lane in a step: dropout, mixing, …"""
    state = seed
    for part in (step + 1, lane + 2):  # SplitMix64's finaliser (Steele et al. 2014), chained
        state = (state + part * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
