"""Makes the view of an image that a network reads: the eval view, or a random training view.

Views are [R, R, 3] uint8, RGB, contiguous. A stack of them is in `channels_last` order and takes a
quarter of the bytes of float32. The network normalizes them on the device. No torch, no Ray.
"""

import math
from random import Random

import cv2
import numpy as np
from PIL import Image

from effnet_ray.data.augment import augmented
from effnet_ray.data.decode import Box, Pixels, decode, decode_crop
from effnet_ray.data.image_checks import MAX_PIXELS
from effnet_ray.errors import ImageError
from effnet_ray.recipe import Recipe
from effnet_ray.variants import SQUASH, InputSpec

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# Images are decoded in parallel tasks; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)


def write_eval_view(
    data: bytes | ImageError, spec: InputSpec, view: Pixels
) -> tuple[Pixels | None, str]:
    """Write the eval view of an encoded image into the array `view`, [R, R, 3].

    Returns (the decoded pixels, ""), or (None, the reason) if the image cannot be read; `view` is
    then unchanged. `data` may already be the error of reading the file.
    """
    try:
        if isinstance(data, ImageError):
            raise data
        pixels = decode(data)
        view[:] = eval_view(pixels, spec)
    except ImageError as error:
        return None, str(error)
    return pixels, ""


def eval_view(pixels: Pixels, spec: InputSpec) -> Pixels:
    """timm's view for evaluation: an antialiased resize, then a centre crop.

    Source: timm 1.0.31 `timm/data/transforms_factory.py transforms_imagenet_eval` and
    torchvision's Resize. Raises ImageError if the resized image would exceed `MAX_PIXELS`.
    """
    target = _resized_shape(pixels.shape[0], pixels.shape[1], spec)
    image = Image.fromarray(pixels).resize(target, _RESAMPLING[spec.interpolation])
    left = round((target[0] - spec.resolution) / 2.0)
    top = round((target[1] - spec.resolution) / 2.0)
    return np.asarray(image.crop((left, top, left + spec.resolution, top + spec.resolution)))


def _resized_shape(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Width and height of an image before the centre crop. Raises ImageError as `eval_view`."""
    size = spec.resized
    if spec.crop_mode == SQUASH:
        return size, size
    short, long = min(height, width), max(height, width)
    if size * size * long > MAX_PIXELS * short:
        raise ImageError(
            f"too long and narrow: {width}×{height} px, resized to {size} px on the shorter side, "
            f"exceeds {MAX_PIXELS:,} px"
        )
    scaled = (size, int(size * long / short))
    return scaled if width <= height else scaled[::-1]


def train_view(data: bytes, spec: InputSpec, recipe: Recipe, random: Random) -> Pixels:
    """A random resized crop, flipped with probability `recipe.flip`, augmented as `recipe.aa`.

    Every draw comes from `random`. Raises ImageError as `decode` does.
    """
    crop = decode_crop(
        data, lambda height, width: crop_box(height, width, recipe, random), spec.resolution
    )
    view = _resize(crop, spec.resolution)
    view = cv2.flip(view, 1) if random.random() < recipe.flip else view
    if recipe.aa == "none":
        return view
    return augmented(view, recipe.aa, random, tuple(round(255 * mean) for mean in spec.mean))


def crop_box(height: int, width: int, recipe: Recipe, random: Random) -> Box:
    """The box of a random crop of an image.

    Drawn as by torchvision's RandomResizedCrop: area uniform, log aspect ratio uniform, ten
    attempts, then a centre crop.
    """
    max_log_ratio = math.log(recipe.crop_ratio)
    for _ in range(10):
        area = height * width * random.uniform(recipe.crop_scale, 1.0)
        ratio = math.exp(random.uniform(-max_log_ratio, max_log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w = min(width, round(height * recipe.crop_ratio))
    h = min(height, round(width * recipe.crop_ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize(crop: Pixels, size: int) -> Pixels:
    """The crop at size × size.

    Bilinear resizing skips pixels when it shrinks to a half or less: there areas are averaged.
    Otherwise OpenCV's bilinear is used: like Pillow's own bilinear, it differs from Pillow's
    bicubic by 1.5 of 255 levels, and it takes a sixth of the time of averaging
    (`benchmarks/decoders.py`).
    """
    height, width = crop.shape[:2]
    if max(height, width) >= 2 * size:
        method = cv2.INTER_AREA
    else:
        method = cv2.INTER_LINEAR if min(height, width) >= size else cv2.INTER_CUBIC
    view: Pixels = cv2.resize(crop, (size, size), interpolation=method)
    return view
