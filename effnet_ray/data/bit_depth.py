"""Images of more than 8 bits per value: which range of values is black to white.

    TIFF with SMinSampleValue and SMaxSampleValue       that range
    TIFF of 9 to 15 bits, PNG whose sBIT says so        0 to 2ᵇⁱᵗˢ - 1
    16 bits                                             0 to 65,535
    32-bit integers and floats without these tags       refused

Cameras and microscopes of 12 bits often write their values unscaled into 16 bits, which would be
nearly black here. Such images are refused too, since nothing says whether they are just dark.
Tags as in TIFF 6.0, whose MinSampleValue and MaxSampleValue are statistics and not meant for
display, and in PNG's third edition, 11.3.2.7 (`sBIT`).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from effnet_ray.data.image_checks import png_chunk
from effnet_ray.errors import ImageError

MAX_16 = 65_535
LOWEST_MAXIMUM = 4_096
"""16-bit values that all are smaller need 12 bits or fewer: at most 15 of 255 as 8 bits."""
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
SMIN, SMAX = 340, 341
"""TIFF's tags of the lowest and the highest value."""


class ValueRange(NamedTuple):
    """Values from black to white."""

    low: float
    high: float
    rule: str
    """Where the range is from."""


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow gives the image as values of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def value_range(image: Image.Image, data: bytes) -> ValueRange:
    """The range of a deep image's values.

    Raises ImageError if nothing in the file says it.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        low, high = _number(image, SMIN), _number(image, SMAX)
        if low is not None and high is not None and low < high:
            return ValueRange(low, high, f"{low:g} to {high:g}, by the TIFF's tags")
    if image.mode in ("F", "I") and image.format != "PPM":
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ImageError(
            f"its values are {kind}, and no tag (SMinSampleValue, SMaxSampleValue) says which is "
            "white: save it with 8 or 16 bits"
        )
    bits = _significant_bits(image, data)
    if bits < 16 and np.asarray(image).max(initial=0) >= 2**bits:
        bits = 16  # scaled to all 16 bits, as PNG's specification wants, in spite of its sBIT
    return ValueRange(0, 2**bits - 1, f"0 to {2**bits - 1:,}, as {bits} bits")


def _significant_bits(image: Image.Image, data: bytes) -> int:
    """Bits of the values by the header; Pillow scales those of a PPM to 16."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(_number(image, BITS_PER_SAMPLE) or 16)
    significant = png_chunk(data, b"sBIT") if image.format == "PNG" else b""
    return min(significant[0], 16) if significant and significant[0] > 8 else 16


def to_8_bits(image: Image.Image, data: bytes) -> npt.NDArray[np.uint8]:
    """The grey values [H, W] of a deep image as 8 bits. Raises ImageError as `value_range`."""
    values = np.asarray(image)
    low, high, _ = value_range(image, data)
    if (low, high) == (0, MAX_16) and np.issubdtype(values.dtype, np.integer):
        refuse_almost_black(int(values.max(initial=0)))
        grey = (values.clip(0, MAX_16) >> 8).astype(np.uint8)
    else:
        shares = (np.nan_to_num(values.astype(np.float64)) - low) / (high - low)
        grey = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    white_is_zero = (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and _number(image, PHOTOMETRIC) == WHITE_IS_ZERO
    )
    return 255 - grey if white_is_zero else grey


def refuse_almost_black(maximum: int) -> None:
    """Raise ImageError for 16-bit values that only use the lower 12 bits; 0 is black."""
    if 0 < maximum < LOWEST_MAXIMUM:
        raise ImageError(
            f"its 16-bit values reach only {maximum:,} of {MAX_16:,}, which is almost black: save "
            "it with values up to 65,535, or with 8 bits"
        )


def is_16_bit_colour(image: Image.Image, data: bytes) -> bool:
    """Whether Pillow shortens the image's values from 16 bits to 8."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return not is_deep(image) and _number(image, BITS_PER_SAMPLE) == 16
    return not is_deep(image) and image.format == "PNG" and data[24] == 16


def _number(image: TiffImagePlugin.TiffImageFile, tag: int) -> float | None:
    """A tag's first value; None if it is missing or not a number."""
    value: Any = image.tag_v2.get(tag)
    first = value[0] if isinstance(value, tuple) and value else value
    try:
        return None if first is None else float(first)
    except (TypeError, ValueError):
        return None
