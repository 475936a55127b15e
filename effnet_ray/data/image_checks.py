"""Checks of an encoded image that its decoder does not make: truncation, damage, size.

Pillow and libjpeg-turbo fill in missing pixels with 0 or grey, and a header can claim any size.
Every check raises ImageError with the reason.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

from effnet_ray.errors import ImageError

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs (`Image.MAX_IMAGE_PIXELS`)."""

MAX_FILE_BYTES = 4 * MAX_PIXELS
"""Largest image file read: the largest image decoded, uncompressed with 4 bytes per pixel."""

JPEG, PNG, RIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF"
"""The bytes that a JPEG, a PNG and a WebP start with."""

JPEG_PIXELS_PER_BYTE = 512
"""Every 8×8 block has a Huffman code of at least one bit: less data is truncated."""
WEBP_PIXELS_PER_BYTE = 4096
"""libwebp reaches 560 with a single plain colour."""
DEFLATE_RATIO = 1032
"""The largest expansion of deflate (zlib's technical details)."""

JPEG_SCAN, JPEG_SEQUENTIAL = 0xDA, (0xC0, 0xC1)
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}
"""Markers: start of scan, starts of frame, all segments with a length (ITU T.81, table B.1)."""
MAX_SCANS = 100
"""A progressive JPEG has about ten; every scan costs a pass over all pixels."""

INFLATE_BYTES = 1 << 20
"""Decompressed bytes held at a time while PNG rows are counted."""
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""(left, top, step right, step down) of an interlaced PNG's passes."""


def check_file_size(size: int) -> None:
    """Check that the file has at most `MAX_FILE_BYTES`; call it before the file is read."""
    if size > MAX_FILE_BYTES:
        raise ImageError(f"the file has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}")


def check_size(width: int, height: int) -> None:
    """Check that the image has at most `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}×{height} px is more than {MAX_PIXELS:,}")


def check_jpeg(data: bytes, width: int, height: int) -> bytes:
    """Check the size, that the bytes suffice for it, and the number of scans.

    Returns the segments before the first scan.
    """
    check_size(width, height)
    if width * height > JPEG_PIXELS_PER_BYTE * len(data):
        raise ImageError(f"truncated: {len(data):,} bytes cannot hold {width}×{height} px")
    header, one_scan = _jpeg_header(data)
    if not one_scan and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"more than {MAX_SCANS} scans")
    return header


def _jpeg_header(data: bytes) -> tuple[bytes, bool]:
    """All data before the first scan, and whether a decoder reads only that scan.

    A decoder does so if the scan holds every component of a sequential JPEG (ITU T.81, B.2). If
    the segments are not contiguous, which decoders tolerate: all data, and False.
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


def check_webp(data: bytes) -> None:
    """Check the size and, unless the pixels are lossless, that the bytes suffice for it."""
    width, height = _webp_size(data)
    check_size(width, height)
    if b"VP8L" not in data and width * height > WEBP_PIXELS_PER_BYTE * len(data):
        raise ImageError(f"truncated: {len(data):,} bytes cannot hold {width}×{height} px")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) by a WebP's header, or (0, 0). Opening the file allocates its canvas."""
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


def check_tiff_strips(image: TiffImagePlugin.TiffImageFile) -> None:
    """Check that the strips reach the last row: Pillow leaves the other rows 0."""
    rows = int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])  # `image.height` may be transposed
    last_row = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if last_row < rows:
        raise ImageError(f"truncated: its strips contain {last_row} of {rows} rows")


def check_png(data: bytes) -> None:
    """Check every chunk's CRC, the size, and that the compressed bytes suffice for it."""
    packed = sum(len(content) for kind, content in _png_chunks(data) if kind == b"IDAT")
    width, height = struct.unpack(">II", data[16:24])
    check_size(width, height)
    if _png_bytes(data) > DEFLATE_RATIO * packed:
        raise ImageError(f"truncated: {packed:,} bytes of IDAT cannot hold {width}×{height} px")


def check_png_rows(image: Image.Image, data: bytes) -> None:
    """Check that the file holds every row of a loaded PNG: Pillow leaves missing rows 0.

    A non-zero last row was read, and so were those above it. Else the bytes are counted.
    """
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not data[28] and np.asarray(last).any():
        return
    expected, actual, inflate = _png_bytes(data), 0, zlib.decompressobj()
    for kind, content in _png_chunks(data):
        rest: bytes | memoryview = content if kind == b"IDAT" else b""
        while rest and actual < expected and not inflate.eof:
            actual += len(inflate.decompress(rest, INFLATE_BYTES))
            rest = inflate.unconsumed_tail
    if actual < expected and not inflate.eof:
        actual += len(inflate.flush())
    if actual < expected:
        raise ImageError(f"truncated: pixels take {expected:,} bytes, IDAT holds {actual:,}")


def png_chunk(data: bytes, kind: bytes) -> bytes:
    """The content of a PNG's first chunk of the kind; empty if it has none."""
    return next((bytes(content) for name, content in _png_chunks(data) if name == kind), b"")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, content) of every chunk to IEND. Raises ImageError for one cut off or altered."""
    view, start = memoryview(data), len(PNG)
    while True:
        end = start + 8 + int.from_bytes(view[start : start + 4], "big")
        if end + 4 > len(data):
            raise ImageError("truncated: a PNG chunk ends after the file")
        kind = bytes(view[start + 4 : start + 8])
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError(f"damaged: the CRC of PNG chunk {kind!r} does not match")
        yield kind, view[start + 8 : end]
        if kind == b"IEND":
            return
        start = end + 4


def _png_bytes(data: bytes) -> int:
    """Bytes of a PNG's pixels before compression, filter bytes included."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    total = 0
    for left, top, right, down in ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
