"""Augmentation of whole lanes on their device: random erasing, mixup, cutmix.

Parameters are drawn on the CPU from torch's generator, which the training step seeds by (seed,
step, lane). That is a number or two per image, so nothing waits for a GPU. Images of weight 0
are not mixed with others.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from effnet_ray.recipe import Recipe

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Share of the image, and height over width (Zhong et al. 2017, and timm's defaults). A side that
would be longer than the image is clipped to it, where timm draws again."""


@dataclass(frozen=True, slots=True)
class MixedLane:
    """Augmented images of a lane, and how much their labels count."""

    image: Tensor
    """[B, 3, R, R], 0 to 255: uint8 if unchanged, float32 if augmented."""
    label_share: Tensor
    """[B] float32, 0 to 1: share of the loss that belongs to the image's own label."""
    mixed_label: Tensor | None = None
    """Label of the image that was mixed in, in a batch's format; None without mixing."""

    def part(self, first: int, rows: int) -> "MixedLane":
        """`rows` images from `first` on."""
        rest = slice(first, first + rows)
        mixed_label = None if self.mixed_label is None else self.mixed_label[rest]
        return MixedLane(self.image[rest], self.label_share[rest], mixed_label)


def mix_lane(
    recipe: Recipe, image: Tensor, label: Tensor, weight: Tensor, noise: tuple[Tensor, Tensor]
) -> MixedLane:
    """Erase and mix a lane's images by the recipe.

    `noise` holds mean and std [1, 3, 1, 1] of erased boxes. Image i is mixed with image B - 1 - i;
    the middle one of an odd number is not mixed.
    """
    if recipe.reprob:
        image = _erase(recipe.reprob, image, noise)
    if not (recipe.mixup or recipe.cutmix):
        return MixedLane(image, weight)
    blend, boxes = _draw_mix(recipe, len(label), image)
    unmixed = (weight == 0) | (weight.flip(0) == 0)
    blend = blend.masked_fill(unmixed, 1)
    boxes = boxes & ~unmixed.view(-1, 1, 1, 1)
    share = blend.view(-1, 1, 1, 1) * ~boxes
    mixed = image * share + image.flip(0) * (1 - share)
    return MixedLane(mixed, blend * (1 - boxes.float().mean((1, 2, 3))), label.flip(0))


def _draw_mix(recipe: Recipe, count: int, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mixup's share of each image [B], and cutmix's boxes [B, 1, R, R].

    Each image gets one of the two: for the other, its share is 1 or its box is empty.
    """
    blend, uncut = _draw_beta(recipe.mixup, count), _draw_beta(recipe.cutmix, count)
    if recipe.mixup and recipe.cutmix:
        cuts = torch.rand(count) < 0.5
        blend, uncut = blend.masked_fill(cuts, 1), uncut.masked_fill(~cuts, 1)
    return blend.to(image.device), _draw_boxes(uncut, image)


def _draw_beta(alpha: float, count: int) -> Tensor:
    return Beta(alpha, alpha).sample((count,)) if alpha else torch.ones(count)


def _draw_boxes(uncut: Tensor, image: Tensor) -> Tensor:
    """Boxes of area 1 - `uncut` of an image, clipped at its edges.

    Yun et al. 2019 (arXiv 1905.04899), section 3.1: the centre is drawn uniformly.
    """
    size = image.shape[-1]
    half = size * (1 - uncut).sqrt() / 2
    row, column = torch.rand(2, len(uncut)) * size
    return _boxes(torch.stack([row - half, row + half, column - half, column + half]), image)


def _erase(probability: float, image: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
    """Images of which some have a box of noise, drawn for every pixel."""
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
