"""An encoded image → the uint8 view a network trains on or is judged by. No torch, no Ray.

Views are [R, R, 3] uint8, RGB, contiguous: a stack of them is what `channels_last` wants, and a
quarter of the bytes of float32. Normalising happens in the network, on the device.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

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
    """RGB pixels [H, W, 3], upright, of a JPEG, PNG, WebP, BMP, GIF or TIFF.

    Raises ImageError with the reason for anything else, truncated data and images too large.
    """
    with _blaming_the_image():
        return _decode_jpeg(data) if _plain_jpeg_size(data) else _decode_other(data)


@contextmanager
def _blaming_the_image() -> Iterator[None]:
    """Decoders raise whatever they like: it becomes an ImageError with the reason."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"it is no {', '.join(FORMATS)}") from error
    except Exception as error:
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that libjpeg-turbo alone makes upright RGB of; else None."""
    if data[:2] != b"\xff\xd8":
        return None
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height)
    # libjpeg-turbo leaves CMYK's inversion and EXIF's orientation to its caller.
    if colorspace in ("CMYK", "YCCK") or _is_turned(data):
        return None
    return height, width


def _is_turned(jpeg: bytes) -> bool:
    """Whether EXIF says that the picture is to be turned or mirrored."""
    if b"Exif\x00\x00" not in jpeg[:65536]:
        return False
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def _decode_jpeg(data: bytes, shrink: int = 1) -> Pixels:
    """Pixels of a plain JPEG, its sides divided by 1, 2, 4 or 8 and rounded up."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data) if shrink > 1 else (0, 0)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_height=-(-height // shrink), min_width=-(-width // shrink)
    )
    return pixels


def _decode_other(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        ImageOps.exif_transpose(image, in_place=True)
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
    data: bytes, spec: InputSpec, recipe: Recipe, random: np.random.Generator
) -> Pixels:
    """A random resized crop of an encoded image, mirrored with probability `recipe.flip`.

    Crops are drawn as torchvision's RandomResizedCrop draws them (area uniform, log aspect
    uniform, ten tries, then the centre); every draw comes from `random`. A JPEG is decoded no
    finer than its crop needs: at 1/2, 1/4 or 1/8 where that still has R pixels a side.
    Raises ImageError as `decode` does.
    """
    with _blaming_the_image():
        size = _plain_jpeg_size(data)
        if size:
            box = _crop_box(*size, recipe, random)
            shrink = max(s for s in (1, 2, 4, 8) if s == 1 or min(box[2:]) // s >= spec.resolution)
            pixels = _decode_jpeg(data, shrink)
            box = tuple(side // shrink for side in box)
        else:
            pixels = _decode_other(data)
            box = _crop_box(pixels.shape[0], pixels.shape[1], recipe, random)
    view = _resized(pixels, box, spec.resolution)
    return cv2.flip(view, 1) if random.random() < recipe.flip else view


def shrunk(pixels: Pixels, max_side: int) -> bytes:
    """The pixels as a JPEG of quality 92 whose longer side is `max_side` px."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=92, subsampling=0)
    return sink.getvalue()


Box = tuple[int, ...]
"""(top, left, height, width), px."""


def _resized(pixels: Pixels, box: Box, size: int) -> Pixels:
    """The box of the pixels at size × size.

    Bilinear by itself skips pixels from a half on: there areas are averaged. Below, it is 1.5 of
    255 levels from Pillow's antialiased bicubic, as Pillow's own bilinear is, in a sixth of the
    time that averaging takes (`benchmarks/decoders.py`).
    """
    top, left, height, width = box
    if max(height, width) >= 2 * size:
        method = cv2.INTER_AREA
    else:
        method = cv2.INTER_LINEAR if min(height, width) >= size else cv2.INTER_CUBIC
    crop = pixels[top : top + height, left : left + width]
    view: Pixels = cv2.resize(crop, (size, size), interpolation=method)
    return view


def _crop_box(height: int, width: int, recipe: Recipe, random: np.random.Generator) -> Box:
    """Where a training crop lies."""
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
