"""An encoded image → the uint8 view a network trains on or is judged by. No torch, no Ray.

Views are [R, R, 3] uint8, RGB, contiguous: a stack of them is what `channels_last` wants, and a
quarter of the bytes of float32. Normalising happens in the network, on the device.
"""

import io
import math

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from effnet_ray.errors import ImageError
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may open: an allow-list, since its rarer readers have had the memory errors."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

MAX_PIXELS = 89_478_485
"""Pillow's own bound against decompression bombs (`Image.MAX_IMAGE_PIXELS`)."""

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# The tasks are the parallelism; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)


def decode(data: bytes) -> Pixels:
    """RGB pixels [H, W, 3] of a JPEG, PNG, WebP, BMP, GIF or TIFF.

    Raises ImageError with the reason for anything else, truncated data and images too large.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data)
        return _decode_other(data)
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever they like; the image is at fault
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _decode_jpeg(data: bytes) -> Pixels:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height)
    if colorspace in ("CMYK", "YCCK"):  # libjpeg-turbo leaves the inversion to the caller
        return _decode_other(data)
    pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return pixels


def _decode_other(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}×{height} px is more than {MAX_PIXELS:,}")


def eval_view(pixels: Pixels, spec: InputSpec) -> Pixels:
    """The view a network is judged by: timm's, antialiased resize then centre crop.

    The shorter side becomes floor(R / crop) px. Source: timm 1.0.31
    `timm/data/transforms_factory.py transforms_imagenet_eval` and torchvision's Resize.
    """
    size = math.floor(spec.resolution / spec.crop)
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = (size, int(size * long / short))
    target = scaled if width <= height else scaled[::-1]
    image = Image.fromarray(pixels).resize(target, _RESAMPLING[spec.interpolation])
    left = round((target[0] - spec.resolution) / 2.0)
    top = round((target[1] - spec.resolution) / 2.0)
    return np.asarray(image.crop((left, top, left + spec.resolution, top + spec.resolution)))


def train_view(
    pixels: Pixels, spec: InputSpec, recipe: Recipe, random: np.random.Generator
) -> Pixels:
    """A random resized crop, mirrored with probability `recipe.flip`.

    Crops are drawn as torchvision's RandomResizedCrop draws them (area uniform, log aspect
    uniform, ten tries, then the centre); every draw comes from `random`.
    """
    top, left, height, width = _crop_box(pixels.shape[0], pixels.shape[1], recipe, random)
    crop = pixels[top : top + height, left : left + width]
    shrinks = min(height, width) >= spec.resolution
    view = cv2.resize(
        crop,
        (spec.resolution, spec.resolution),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
    )
    if random.random() < recipe.flip:
        view = view[:, ::-1]
    return np.ascontiguousarray(view, dtype=np.uint8)


def _crop_box(
    height: int, width: int, recipe: Recipe, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a training crop, px."""
    widest = math.log(recipe.crop_ratio)
    for _ in range(10):
        area = height * width * random.uniform(recipe.crop_scale, 1.0)
        ratio = math.exp(random.uniform(-widest, widest))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), h, w
    w = min(width, round(height * recipe.crop_ratio))
    h = min(height, round(width * recipe.crop_ratio))
    return (height - h) // 2, (width - w) // 2, h, w
