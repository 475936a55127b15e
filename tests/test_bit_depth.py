"""Images of more than 8 bits per value: scaled by what the file says, or refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from effnet_ray.data.decode import decode, describe_range
from effnet_ray.errors import ImageError
from effnet_ray.packing import report
from effnet_ray.packing.pack import pack

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
SMIN, SMAX, MIN, MAX, PHOTOMETRIC = 340, 341, 280, 281, 262


def tiff(values: np.ndarray[Any, Any], tags: dict[int, tuple[int, float]]) -> bytes:
    """A TIFF; `tags` are the type and value by number."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        info.tagtype[tag] = kind
        info[tag] = value
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo=info)
    return buffer.getvalue()


def png(values: np.ndarray[Any, Any], significant: int | None = None) -> bytes:
    """A 16-bit PNG, grey or RGB, with sBIT."""
    height, width, *channels = values.shape
    colour = 2 if channels else 0

    def chunk(content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    if significant:
        chunks.insert(1, b"sBIT" + bytes([significant]) * (3 if channels else 1))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks))


def pgm(values: np.ndarray[Any, Any], maximum: int) -> bytes:
    height, width = values.shape
    return b"P5 %d %d %d\n" % (width, height, maximum) + values.astype(">u2").tobytes()


FULL = (RAMP * 65535).astype(np.uint16)
TWELVE = (RAMP * 4095).astype(np.uint16)
FLOAT = RAMP.astype(np.float32)
EXPECTED = np.rint(RAMP * 255).astype(int)
SCALED = {
    "16-bit PNG": png(FULL),
    "16-bit TIFF": tiff(FULL, {}),
    "12 of 16 bits by sBIT": png(TWELVE, significant=12),
    "12 bits that sBIT says and that are scaled": png(FULL & 0xFFF0, significant=12),
    "16-bit TIFF with its range": tiff(TWELVE, {SMIN: (3, 0), SMAX: (3, 4095)}),
    "float TIFF of 16 bits' range": tiff(FLOAT * 65535, {SMIN: (11, 0.0), SMAX: (11, 65535.0)}),
    "32-bit TIFF of 16 bits' range": tiff(
        (RAMP * 65535).astype(np.int32), {SMIN: (4, 0), SMAX: (4, 65535)}
    ),
    "float TIFF with its range": tiff(FLOAT * 7 - 3, {SMIN: (11, -3.0), SMAX: (11, 4.0)}),
    "32-bit TIFF with its range": tiff(
        (RAMP * 100_000).astype(np.int32), {SMIN: (4, 0), SMAX: (4, 100_000)}
    ),
    "PGM of 12 bits": pgm(TWELVE, 4095),
    "PGM of 16 bits": pgm(FULL, 65535),
}


@pytest.mark.parametrize("name", SCALED)
def test_black_and_white_are_what_the_file_says(name: str) -> None:
    pixels = decode(SCALED[name]).astype(int)
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels - EXPECTED[..., None]).max() <= 1
    low, _, high = describe_range(SCALED[name]).partition(",")[0].partition(" to ")
    assert low in ("0", "-3") and high


def test_the_range_is_the_one_that_is_used() -> None:
    assert describe_range(SCALED["12 of 16 bits by sBIT"]) == "0 to 4,095, as 12 bits"
    scaled = SCALED["12 bits that sBIT says and that are scaled"]
    assert describe_range(scaled) == "0 to 65,535, as 16 bits"


def test_white_that_is_zero_is_white() -> None:
    pixels = decode(tiff(FULL, {PHOTOMETRIC: (3, 0)})).astype(int)
    assert np.abs(pixels[..., 0] - (255 - EXPECTED)).max() <= 1


def test_values_that_are_no_numbers_are_black() -> None:
    values = FLOAT.copy()
    values[0] = np.nan
    pixels = decode(tiff(values, {SMIN: (11, 0.0), SMAX: (11, 1.0)}))
    assert not pixels[0].any() and pixels[-1].all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(TWELVE), r"16-bit values reach only 4,095 of 65,535, .* save it with values up"),
        (png(np.stack([TWELVE] * 3, axis=2)), "16-bit values reach only 3,840 of 65,535"),
        (tiff(TWELVE, {}), "reach only 4,095"),
        (tiff(TWELVE, {MIN: (3, 0), MAX: (3, 4095)}), "reach only 4,095"),  # statistics
        (tiff(FLOAT, {}), r"its values are floats, and no tag \(SMinSampleValue"),
        (tiff((RAMP * 1e6).astype(np.int32), {}), "signed or 32-bit integers, and no tag"),
        (tiff(FLOAT, {SMIN: (11, 1.0), SMAX: (11, 1.0)}), "floats"),
    ],
)
def test_values_without_a_range_are_refused_with_what_to_do(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_a_black_image_is_black() -> None:
    for values in (np.zeros((8, 8), np.uint16), np.zeros((8, 8, 3), np.uint16)):
        assert not decode(png(values)).any()


def test_16_bits_of_colour_are_shortened() -> None:
    pixels = decode(png(np.stack([FULL, FULL // 2, FULL // 4], axis=2))).astype(int)
    for channel, divisor in enumerate((1, 2, 4)):
        assert np.abs(pixels[..., channel] - (FULL // divisor >> 8)).max() <= 1


def test_packing_counts_the_ranges_and_quarantines_what_has_none(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(4):
            values = (FULL // (number + 2 + 9 * (label == "cat"))).astype(np.uint16)
            (tmp_path / f"source/{label}/{number}.png").write_bytes(png(values))
    (tmp_path / "source/dog/float.tif").write_bytes(tiff(FLOAT, {}))
    pack(str(tmp_path / "source"), str(tmp_path / "out"))
    made = report.load(str(tmp_path / "out"))
    assert made.value_ranges == {"0 to 65,535, as 16 bits": 8}
    (reason,) = made.quarantined
    assert "floats" in reason
