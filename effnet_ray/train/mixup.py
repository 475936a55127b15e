"""Augmentation of a worker's images on their device: random erasing, mixup, cutmix.

Each lane's parameters are drawn on the CPU from torch's generator, which `train.draws` seeds by
(seed, step, lane). They are a few numbers per image. Images of weight 0 are not mixed with others.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Target

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Share of the image, and height over width (Zhong et al. 2017, and timm's defaults). A side that
would be longer than the image is clipped to it, where timm draws again."""
ERASED, BLEND, CUT, MIXED = slice(0, 4), 4, slice(5, 9), slice(4, 9)
"""Rows of the drawn parameters: the erased box (top, bottom, left, right), mixup's share of the
image itself, cutmix's box, and both of these."""
PARAMETERS = 9
"""Number of these rows."""


@dataclass(frozen=True, slots=True)
class MixedImages:
    """Augmented images, and how much their labels count."""

    image: Tensor
    """[B, 3, R, R], 0 to 255: uint8 if unchanged, float32 if augmented."""
    label_share: Tensor
    """[B] float32, 0 to 1: share of the loss that belongs to the image's own label."""
    mixed_in: Target | None = None
    """Target of the image that was mixed in; None without mixing."""

    def part(self, first: int, rows: int) -> "MixedImages":
        """`rows` images from `first` on."""
        rest = slice(first, first + rows)
        mixed_in = self.mixed_in and self.mixed_in[rest]
        return MixedImages(self.image[rest], self.label_share[rest], mixed_in)


def draw_mix(recipe: Recipe, rows: int, size: int) -> Tensor:
    """Mixup's share and cutmix's box of each image of a lane: the rows MIXED, [5, rows]."""
    blend, uncut = _draw_beta(recipe.mixup, rows), _draw_beta(recipe.cutmix, rows)
    if recipe.mixup and recipe.cutmix:  # each image gets one of the two
        cuts = torch.rand(rows) < 0.5
        blend, uncut = blend.masked_fill(cuts, 1), uncut.masked_fill(~cuts, 1)
    return torch.cat([blend[None], _draw_cut(uncut, size)])


def _draw_beta(alpha: float, count: int) -> Tensor:
    if not alpha:
        return torch.ones(count)
    return Beta(alpha, alpha, validate_args=False).sample((count,))


def _draw_cut(uncut: Tensor, size: int) -> Tensor:
    """Boxes of area 1 - `uncut` of an image; they may reach beyond its edges.

    Yun et al. 2019 (arXiv 1905.04899), section 3.1: the centre is drawn uniformly.
    """
    half = size * (1 - uncut).sqrt() / 2
    row, column = torch.rand(2, len(uncut)) * size
    return torch.stack([row - half, row + half, column - half, column + half])


def draw_erased(probability: float, count: int, size: int) -> Tensor:
    """Boxes to erase of a lane's images: the rows ERASED, [4, count]. Some are empty."""
    chosen = (torch.rand(count) < probability).float()
    area = torch.empty(count).uniform_(*ERASED_AREA) * size**2
    low, high = map(math.log, ERASED_ASPECT)
    aspect = torch.empty(count).uniform_(low, high).exp()
    height, width = (area * aspect).sqrt().clamp(max=size), (area / aspect).sqrt().clamp(max=size)
    top, left = torch.rand(count) * (size - height), torch.rand(count) * (size - width)
    return torch.stack([top, top + chosen * height, left, left + width])


def erase(image: Tensor, drawn: Tensor, noise: Tensor) -> Tensor:
    """Images [B, 3, R, R] whose drawn box, if they have one, is filled from `noise`."""
    return torch.where(_boxes(drawn[ERASED], image), noise, image.float())


def mix(
    image: Tensor, target: Target, weight: Tensor, drawn: Tensor, partner: Tensor
) -> MixedImages:
    """Mix each image with its partner, whose index is given ([B] int64)."""
    unmixed = (weight == 0) | (weight[partner] == 0)
    blend = drawn[BLEND].masked_fill(unmixed, 1)
    boxes = _boxes(drawn[CUT], image) & ~unmixed.view(-1, 1, 1, 1)
    share = blend.view(-1, 1, 1, 1) * ~boxes
    mixed = image * share + image[partner] * (1 - share)
    return MixedImages(mixed, blend * (1 - boxes.float().mean((1, 2, 3))), target[partner])


def _boxes(sides: Tensor, image: Tensor) -> Tensor:
    """[B, 1, R, R] bool: pixels whose centre lies in an image's box.

    `sides` [4, B]: top, bottom, left, right.
    """
    top, bottom, left, right = sides[:, :, None]
    centre = torch.arange(image.shape[-1], device=image.device) + 0.5
    rows, columns = (centre >= top) & (centre < bottom), (centre >= left) & (centre < right)
    boxes: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return boxes
