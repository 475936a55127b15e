"""An encoded image → the uint8 view a network trains on or is judged by. No torch, no Ray.

Views are [R, R, 3] uint8, RGB, contiguous: a stack of them is what `channels_last` wants, and a
quarter of the bytes of float32. Normalising happens in the network, on the device.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from effnet_ray.data.augment import augmented
from effnet_ray.errors import ImageError
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may open: an allow-list, since its rarer readers have had the memory errors."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PICTURES = (*SUFFIXES, ".avif", ".heic", ".heif", ".jp2", ".jxl")
"""What people know as pictures: those we do not decode are set aside by name, not overlooked."""

MAX_PIXELS = 89_478_485
"""Pillow's own bound against decompression bombs (`Image.MAX_IMAGE_PIXELS`)."""

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"

JPEG_PIXELS_PER_BYTE = 512
"""Huffman's shortest code is one bit, and every 8×8 block has one: less data is truncated."""

WEBP_PIXELS_PER_BYTE = 4096
"""libwebp gets 560 from a single plain colour."""

DEFLATE_RATIO = 1032
"""The most that deflate can expand (zlib's technical details)."""

JPEG_SCAN, JPEG_SEQUENTIAL = 0xDA, (0xC0, 0xC1)
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}
"""Kinds of segments: start of scan, starts of frame, all with a length (ITU T.81, table B.1)."""

MAX_SCANS = 100
"""A progressive JPEG has about ten; every scan costs a pass over all pixels."""

INFLATE_BYTES = 1 << 20

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip
"""(left, top, step right, step down) of an interlaced PNG's passes."""

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
    if data[:2] != JPEG:
        return None
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height)
    if width * height > JPEG_PIXELS_PER_BYTE * len(data):
        raise ImageError(f"truncated: {len(data):,} bytes cannot hold {width}×{height} px")
    header, one_scan = _jpeg_header(data)
    if not one_scan and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"more than {MAX_SCANS} scans")
    # libjpeg-turbo leaves CMYK's inversion and EXIF's orientation to its caller.
    if colorspace in ("CMYK", "YCCK") or _orientation(data, header) != 1:
        return None
    return height, width


def _jpeg_header(data: bytes) -> tuple[bytes, bool]:
    """All that comes before the first scan, and whether a decoder reads that scan alone.

    It does where the scan holds every component of a sequential JPEG (ITU T.81, B.2). Where not
    one segment follows the other, which decoders tolerate: all data, and False.
    """
    at, components, sequential = 2, 0, False
    while data[at : at + 1] == b"\xff" and len(data) > at + 9:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind in JPEG_FRAMES:
            components, sequential = data[at + 9], kind in JPEG_SEQUENTIAL
        if kind == JPEG_SCAN:
            return data[:at], sequential and data[at + 4] == components
        if kind not in JPEG_SEGMENTS:
            break
        at += 2 + length
    return data, False


def _orientation(jpeg: bytes, header: bytes) -> int:
    """How EXIF or XMP says that the picture lies, 1 to 8; 1 is upright."""
    if b"Exif\x00\x00" not in header and b"tiff:Orientation" not in header:
        return 1
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(found) if found in range(2, 9) else 1


def _decode_jpeg(data: bytes, shrink: int = 1) -> Pixels:
    """Pixels of a plain JPEG, its sides divided by 1, 2, 4 or 8 and rounded up."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data) if shrink > 1 else (0, 0)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_height=-(-height // shrink), min_width=-(-width // shrink)
    )
    return pixels


def _decode_other(data: bytes) -> Pixels:
    """Pixels of what is no plain JPEG."""
    if data[:2] == JPEG:
        return _decode_turned_jpeg(data)
    if data[:8] == PNG:
        _check_png(data)
    if data[:4] == b"RIFF":
        _check_webp(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_strips(image)
        image.load()
        if data[:8] == PNG:
            _check_rows(image, data)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _check_strips(image: TiffImagePlugin.TiffImageFile) -> None:
    """A TIFF's strips reach its last row: Pillow leaves what they do not cover 0, silently."""
    rows = int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])  # `image.height` may be turned already
    reached = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if reached < rows:
        raise ImageError(f"truncated: its strips hold {reached} of {rows} rows")


def _decode_turned_jpeg(data: bytes) -> Pixels:
    """Upright RGB of a JPEG that is turned or CMYK.

    Decoded by libjpeg-turbo too, since Pillow takes missing scanlines for grey ones.
    """
    if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
        inverted = simplejpeg.decode_jpeg(data, colorspace="CMYK")  # Adobe's way, and Pillow's
        pixels = np.asarray(Image.fromarray(255 - inverted, "CMYK").convert("RGB"))
    else:
        pixels = _decode_jpeg(data)
    return np.ascontiguousarray(_upright(pixels, _orientation(data, data)))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """The picture as EXIF's orientation wants it shown."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}×{height} px is more than {MAX_PIXELS:,}")


def _check_webp(data: bytes) -> None:
    """The size is bearable and, unless the pixels are lossless, the bytes enough for it."""
    width, height = _webp_size(data)
    _check_size(width, height)
    if b"VP8L" not in data and width * height > WEBP_PIXELS_PER_BYTE * len(data):
        raise ImageError(f"truncated: {len(data):,} bytes cannot hold {width}×{height} px")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a WebP by its header; opening one allocates its canvas. (0, 0): none."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, content) of every chunk to IEND. Raises ImageError where one is cut or altered."""
    view, start = memoryview(data), len(PNG)
    while True:
        end = start + 8 + int.from_bytes(view[start : start + 4], "big")
        if end + 4 > len(data):
            raise ImageError("truncated: a PNG chunk ends after the file")
        kind = bytes(view[start + 4 : start + 8])
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError(f"damaged: the CRC of PNG chunk {kind!r} differs")
        yield kind, view[start + 8 : end]
        if kind == b"IEND":
            return
        start = end + 4


def _check_png(data: bytes) -> None:
    """Every chunk is whole, the size bearable, and the compressed pixels enough for it."""
    packed = sum(len(content) for kind, content in _png_chunks(data) if kind == b"IDAT")
    width, height = struct.unpack(">II", data[16:24])
    _check_size(width, height)
    if _png_bytes(data) > DEFLATE_RATIO * packed:
        raise ImageError(f"truncated: {packed:,} bytes of IDAT cannot hold {width}×{height} px")


def _png_bytes(data: bytes) -> int:
    """Bytes that the pixels of a PNG take before compression, filter bytes included."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    total = 0
    for left, top, right, down in ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _check_rows(image: Image.Image, data: bytes) -> None:
    """Every row of a loaded PNG came from the file: Pillow leaves missing rows 0, silently.

    A last row with anything in it was read, and so were those above it; the others are counted.
    """
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not data[28] and np.asarray(last).any():
        return
    wanted, found, inflate = _png_bytes(data), 0, zlib.decompressobj()
    for kind, content in _png_chunks(data):
        rest: bytes | memoryview = content if kind == b"IDAT" else b""
        while rest and found < wanted and not inflate.eof:
            found += len(inflate.decompress(rest, INFLATE_BYTES))
            rest = inflate.unconsumed_tail
    found += len(inflate.flush()) if found < wanted and not inflate.eof else 0
    if found < wanted:
        raise ImageError(f"truncated: pixels take {wanted:,} bytes, IDAT holds {found:,}")


def eval_view(pixels: Pixels, spec: InputSpec) -> Pixels:
    """The view a network is judged by: timm's, antialiased resize then centre crop.

    The shorter side becomes floor(R / crop) px. Source: timm 1.0.31
    `timm/data/transforms_factory.py transforms_imagenet_eval` and torchvision's Resize.
    Raises ImageError where the longer side would then be out of all bounds.
    """
    size = math.floor(spec.resolution / spec.crop)
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    if size * size * long > MAX_PIXELS * short:
        raise ImageError(
            f"too long and narrow: {width}×{height} px would have to be enlarged to {size} px on "
            "the shorter side"
        )
    scaled = (size, int(size * long / short))
    target = scaled if width <= height else scaled[::-1]
    image = Image.fromarray(pixels).resize(target, _RESAMPLING[spec.interpolation])
    left = round((target[0] - spec.resolution) / 2.0)
    top = round((target[1] - spec.resolution) / 2.0)
    return np.asarray(image.crop((left, top, left + spec.resolution, top + spec.resolution)))


def train_view(data: bytes, spec: InputSpec, recipe: Recipe, random: Random) -> Pixels:
    """A random resized crop of an encoded image, mirrored with probability `recipe.flip`.

    Then what the recipe's `aa` does to it.
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
    view = cv2.flip(view, 1) if random.random() < recipe.flip else view
    if recipe.aa == "none":
        return view
    return augmented(view, recipe.aa, random, tuple(round(255 * mean) for mean in spec.mean))


def resize_jpeg(pixels: Pixels, max_side: int) -> bytes:
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


def _crop_box(height: int, width: int, recipe: Recipe, random: Random) -> Box:
    """Where a training crop lies."""
    widest = math.log(recipe.crop_ratio)
    for _ in range(10):
        area = height * width * random.uniform(recipe.crop_scale, 1.0)
        ratio = math.exp(random.uniform(-widest, widest))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w = min(width, round(height * recipe.crop_ratio))
    h = min(height, round(width * recipe.crop_ratio))
    return (height - h) // 2, (width - w) // 2, h, w
