"""AutoAugment, RandAugment and TrivialAugment, drawn from a generator per image.

The operations and ranges are torchvision's. Its own classes draw from torch's global generator, so
an image's view would depend on the images before it.
"""

import math
import re
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

Pixels = npt.NDArray[np.uint8]
Step = tuple[str, float]
"""An operation, and its amount in the operation's unit."""
Color = tuple[int, ...]

RAND = re.compile(r"rand(?:-m(\d+))?(?:-n(\d+))?")
RAND_MAGNITUDE, RAND_OPERATIONS, RAND_BINS = 9, 2, 30
"""Cubuk et al. 2019 (arXiv 1909.13719), as torchvision sets it: a magnitude of 0 to 30."""
AUTO_BINS = 9
"""Magnitudes of AUTO are 0 to 9: Cubuk et al. 2018 (arXiv 1805.09501)."""

SHAPES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
COLORS = ("Brightness", "Color", "Contrast", "Sharpness")
TONES = ("Posterize", "Solarize", "AutoContrast", "Equalize")
DRAWN = ("Identity", *SHAPES, *COLORS, *TONES)
"""What RandAugment and TrivialAugment choose from."""

AUTO: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
"""The policy for ImageNet: pairs of (operation, probability, magnitude of 0 to 9). Cubuk et al.
2018 (arXiv 1805.09501), table 9."""


def augmented(view: Pixels, policy: str, random: Random, fill: Color) -> Pixels:
    """The view [R, R, 3] after a policy's operations; `fill` is the colour outside the image."""
    image = Image.fromarray(view)
    for name, amount in steps(policy, random, len(view)):
        image = OPERATIONS[name](image, amount, fill)
    return np.array(image)


def steps(policy: str, random: Random, size: int) -> list[Step]:
    """The operations that a policy draws for one image of `size` px."""
    if policy == "none":
        return []
    if policy == "auto":
        return _auto(random, size)
    if policy == "trivial":  # Müller and Hutter 2021 (arXiv 2103.10158): the wide space
        share = random.randint(0, RAND_BINS) / RAND_BINS
        return [_step(random.choice(DRAWN), share, random, size, wide=True)]
    match = RAND.fullmatch(policy)
    assert match is not None  # a Recipe checks it
    share = int(match[1] or RAND_MAGNITUDE) / RAND_BINS
    names = [random.choice(DRAWN) for _ in range(int(match[2] or RAND_OPERATIONS))]
    return [_step(name, share, random, size) for name in names]


def _auto(random: Random, size: int) -> list[Step]:
    return [
        _step(name, magnitude / AUTO_BINS, random, size)
        for name, probability, magnitude in random.choice(AUTO)
        if random.random() < probability
    ]


def _step(name: str, share: float, random: Random, size: int, wide: bool = False) -> Step:
    """An operation at a share (0 to 1) of its range, with a random sign if the range has two."""
    sign = random.choice((-1, 1))
    if name.startswith("Shear"):
        return name, sign * share * (0.99 if wide else 0.3)
    if name.startswith("Translate"):
        return name, sign * share * (32.0 if wide else 150 / 331 * size)
    if name == "Rotate":
        return name, sign * share * (135.0 if wide else 30.0)
    if name in COLORS:
        return name, sign * share * (0.99 if wide else 0.9)
    if name == "Posterize":
        return name, 8 - round(share * (6 if wide else 4))
    return name, 255 * (1 - share)


def _affine(image: Image.Image, matrix: Sequence[float], fill: Color) -> Image.Image:
    """The image with each pixel (x, y) taken from (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        tuple(matrix),
        Image.Resampling.BILINEAR,
        fillcolor=fill,
    )


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> "Operation":
    return lambda image, amount, fill: kind(image).enhance(1 + amount)


Operation = Callable[[Image.Image, float, Color], Image.Image]

OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, amount, fill: image,
    "ShearX": lambda image, amount, fill: _affine(image, (1, amount, 0, 0, 1, 0), fill),
    "ShearY": lambda image, amount, fill: _affine(image, (1, 0, 0, amount, 1, 0), fill),
    "TranslateX": lambda image, px, fill: _affine(image, (1, 0, -int(px), 0, 1, 0), fill),
    "TranslateY": lambda image, px, fill: _affine(image, (1, 0, 0, 0, 1, -int(px)), fill),
    "Rotate": lambda image, degrees, fill: image.rotate(
        degrees, Image.Resampling.BILINEAR, fillcolor=fill
    ),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "Posterize": lambda image, bits, fill: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold, fill: ImageOps.solarize(image, math.ceil(threshold)),
    "AutoContrast": lambda image, amount, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, amount, fill: ImageOps.equalize(image),
    "Invert": lambda image, amount, fill: ImageOps.invert(image),
}
