"""What is done to a lane's images on its device: erasing, mixup, cutmix.

Drawn on the CPU from torch's generator, which the loop seeds by (seed, step, lane): a number or
two for each image, so that a GPU is not waited for. Images of weight 0 are mixed with none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from effnet_ray.recipe import Recipe

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Share of the image, and height over width (Zhong et al. 2017, and timm's defaults). What would
be longer than the image is as long as it; timm draws again."""


@dataclass(frozen=True, slots=True)
class MixedLane:
    """Images and what they show."""

    image: Tensor
    """[B, 3, R, R], 0 to 255: uint8, or float32 where something was done to it."""
    share: Tensor
    """[B] float32, 0 to 1: how much of the image is its own label's."""
    other: Tensor | None = None
    """The label of what was mixed in, as in a batch; None where nothing was."""

    def part(self, first: int, rows: int) -> "MixedLane":
        """Some of the images."""
        rest = slice(first, first + rows)
        other = None if self.other is None else self.other[rest]
        return MixedLane(self.image[rest], self.share[rest], other)


def mix_lane(
    recipe: Recipe, image: Tensor, label: Tensor, weight: Tensor, noise: tuple[Tensor, Tensor]
) -> MixedLane:
    """A lane as the recipe wants it shown. `noise`: mean and std, [1, 3, 1, 1], of erased boxes.

    An image's partner is the one as far from the lane's end as it is from its beginning; the one
    in the middle of an odd number has none.
    """
    if recipe.reprob:
        image = _erased(recipe.reprob, image, noise)
    if not (recipe.mixup or recipe.cutmix):
        return MixedLane(image, weight)
    blend, boxes = _drawn(recipe, len(label), image)
    alone = (weight == 0) | (weight.flip(0) == 0)
    blend = blend.masked_fill(alone, 1)
    boxes = boxes & ~alone.view(-1, 1, 1, 1)
    own = blend.view(-1, 1, 1, 1) * ~boxes
    shown = image * own + image.flip(0) * (1 - own)
    return MixedLane(shown, blend * (1 - boxes.float().mean((1, 2, 3))), label.flip(0))


def _drawn(recipe: Recipe, count: int, image: Tensor) -> tuple[Tensor, Tensor]:
    """How much of itself each image keeps [B], and boxes of another's [B, 1, R, R].

    One of the two is nothing: all of itself, or no box.
    """
    blend, kept = _beta(recipe.mixup, count), _beta(recipe.cutmix, count)
    if recipe.mixup and recipe.cutmix:
        pastes = torch.rand(count) < 0.5
        blend, kept = blend.masked_fill(pastes, 1), kept.masked_fill(~pastes, 1)
    return blend.to(image.device), _pasted(kept, image)


def _beta(alpha: float, count: int) -> Tensor:
    return Beta(alpha, alpha).sample((count,)) if alpha else torch.ones(count)


def _pasted(kept: Tensor, image: Tensor) -> Tensor:
    """Boxes of about 1 - `kept` of an image, cut at its edges.

    Yun et al. 2019 (arXiv 1905.04899), section 3.1: the centre is drawn uniformly.
    """
    size = image.shape[-1]
    half = size * (1 - kept).sqrt() / 2
    row, column = torch.rand(2, len(kept)) * size
    return _boxes(torch.stack([row - half, row + half, column - half, column + half]), image)


def _erased(probability: float, image: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
    """Images of which some have a box of noise, from another distribution for every pixel."""
    count, size = len(image), image.shape[-1]
    chosen = (torch.rand(count) < probability).float()
    area = torch.empty(count).uniform_(*ERASED_AREA) * size**2
    low, high = map(math.log, ERASED_ASPECT)
    aspect = torch.empty(count).uniform_(low, high).exp()
    height, width = (area * aspect).sqrt().clamp(max=size), (area / aspect).sqrt().clamp(max=size)
    top, left = torch.rand(count) * (size - height), torch.rand(count) * (size - width)
    sides = torch.stack([top, top + chosen * height, left, left + width])
    mean, std = noise
    before = image.float()
    return torch.where(_boxes(sides, image), mean + std * torch.randn_like(before), before)


def _boxes(sides: Tensor, image: Tensor) -> Tensor:
    """[B, 1, R, R] bool: pixels whose centre lies in an image's box.

    `sides` [4, B]: top, bottom, left, right.
    """
    top, bottom, left, right = sides.to(image.device)[:, :, None]
    centre = torch.arange(image.shape[-1], device=image.device) + 0.5
    rows, columns = (centre >= top) & (centre < bottom), (centre >= left) & (centre < right)
    boxes: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return boxes
