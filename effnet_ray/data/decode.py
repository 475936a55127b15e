"""Decodes the bytes of one image to upright RGB pixels, whole or as a crop; called by `views`.

Runs on the CPU, without torch and Ray; see `chunks` for where a GPU's decoding would begin.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from effnet_ray.data import bit_depth, image_checks
from effnet_ray.data.image_checks import JPEG, PNG, RIFF
from effnet_ray.errors import ImageError, one_line

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3], RGB."""
Box = tuple[int, int, int, int]
"""(top, left, height, width), px."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may open. Its readers of rarer formats have had memory errors."""
SHRINKS = (8, 4, 2, 1)
"""libjpeg-turbo decodes a JPEG at 1/8, 1/4 and 1/2 of its size faster than at full size."""


def decode(data: bytes) -> Pixels:
    """RGB pixels [H, W, 3], upright, of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM.

    Raises ImageError with the reason for other formats, truncated data, images too large, and
    values whose range is unknown (`bit_depth`).
    """
    with _decoder_errors():
        return _decode_jpeg(data) if _plain_jpeg_size(data) else _decode_other(data)


def decode_crop(data: bytes, choose_box: Callable[[int, int], Box], min_side: int) -> Pixels:
    """The pixels of a box of the image; `choose_box` is called with its height and width.

    A JPEG is decoded at the smallest scale of `SHRINKS` that leaves the box `min_side` px a side.
    Raises ImageError as `decode` does.
    """
    with _decoder_errors():
        size = _plain_jpeg_size(data)
        if size:
            box = choose_box(*size)
            fitting = (shrink for shrink in SHRINKS if min(box[2:]) // shrink >= min_side)
            shrink = next(fitting, 1)
            pixels = _decode_jpeg(data, shrink)
            top, left, height, width = (side // shrink for side in box)
        else:
            pixels = _decode_other(data)
            top, left, height, width = choose_box(pixels.shape[0], pixels.shape[1])
    return pixels[top : top + height, left : left + width]


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height by the image's header, px, not turned upright. Raises ImageError."""
    with _decoder_errors(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
    return width, height


def describe_range(data: bytes) -> str:
    """Which range of an image's values is black to white; empty for one of 8 bits or fewer.

    Raises ImageError as `decode` does.
    """
    with _decoder_errors():
        if data[:2] == JPEG:
            return ""
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if bit_depth.is_16_bit_colour(image, data):
                return "0 to 65,535, as 16 bits"
            return bit_depth.value_range(image, data).rule if bit_depth.is_deep(image) else ""


def encode_jpeg(pixels: Pixels, max_side: int) -> bytes:
    """The pixels as a JPEG of quality 92, shrunk to `max_side` px on the longer side."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=92, subsampling=0)
    return sink.getvalue()


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Raises ImageError with the reason for whatever a decoder raises."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    except Exception as error:
        raise ImageError(one_line(error)) from error


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that libjpeg-turbo decodes to upright RGB; None for others."""
    if data[:2] != JPEG:
        return None
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    header = image_checks.check_jpeg(data, width, height)
    # libjpeg-turbo leaves CMYK's inversion and EXIF's orientation to its caller.
    if colorspace in ("CMYK", "YCCK") or _orientation(data, header) != 1:
        return None
    return height, width


def _orientation(jpeg: bytes, header: bytes) -> int:
    """The orientation by EXIF or XMP, 1 to 8; 1 is upright."""
    if b"Exif\x00\x00" not in header and b"tiff:Orientation" not in header:
        return 1
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(orientation) if orientation in range(2, 9) else 1


def _decode_jpeg(data: bytes, shrink: int = 1) -> Pixels:
    """Pixels of a plain JPEG, its sides divided by 1, 2, 4 or 8 and rounded up."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data) if shrink > 1 else (0, 0)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_height=-(-height // shrink), min_width=-(-width // shrink)
    )
    return pixels


def _decode_other(data: bytes) -> Pixels:
    """Pixels of any image that is not a plain JPEG."""
    if data[:2] == JPEG:
        return _decode_special_jpeg(data)
    is_png = data[:8] == PNG
    if is_png:
        image_checks.check_png(data)
    if data[:4] == RIFF:
        image_checks.check_webp(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image_checks.check_size(*image.size)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            image_checks.check_tiff_strips(image)
        image.load()
        if is_png:
            image_checks.check_png_rows(image, data)
        ImageOps.exif_transpose(image, in_place=True)
        if bit_depth.is_deep(image):  # Pillow would clip it at 255
            return np.repeat(bit_depth.to_8_bits(image, data)[:, :, None], 3, axis=2)
        pixels = np.asarray(image.convert("RGB"))
        if bit_depth.is_16_bit_colour(image, data):
            bit_depth.refuse_almost_black(int(pixels.max(initial=0)) << 8)
        return pixels


def _decode_special_jpeg(data: bytes) -> Pixels:
    """Upright RGB of a JPEG that is rotated or CMYK.

    libjpeg-turbo decodes it too: Pillow would fill in missing scanlines with grey.
    """
    if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
        inverted = simplejpeg.decode_jpeg(data, colorspace="CMYK")  # as Adobe and Pillow store it
        pixels = np.asarray(Image.fromarray(255 - inverted, "CMYK").convert("RGB"))
    else:
        pixels = _decode_jpeg(data)
    return np.ascontiguousarray(_upright(pixels, _orientation(data, data)))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """The pixels, rotated and mirrored by EXIF's orientation."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
