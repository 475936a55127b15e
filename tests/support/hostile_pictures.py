"""Pictures that are not what they seem: bombs, two files in one, other formats, cut animations."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

HUGE = 2**31 - 1


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's chunk, with its CRC."""
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png_with(image: Image.Image, *chunks: bytes) -> bytes:
    """The picture as PNG, with chunks after its header."""
    data = saved(image.convert("RGB"), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_of(width: int, height: int, depth: int, colour: int, packed: bytes) -> bytes:
    """A PNG with this header, whose pixels are this compressed data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../x", data)
    return buffer.getvalue()


def atom(kind: bytes, content: bytes) -> bytes:
    """A box of ISO media files, such as AVIF and HEIC."""
    return struct.pack(">I", 8 + len(content)) + kind + content


BOMB_MB = 64
"""Of a text or profile that is compressed to a thousandth."""
SVG = (b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
       b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" onload="alert(1)">'
       b"<text>&a;</text></svg>")  # fmt: skip


def whole(photograph: Image.Image) -> dict[str, bytes]:
    """Pictures that are read: something follows them, or is beside their pixels."""
    small = photograph.resize((48, 40))
    jpeg, gif, png = saved(small, "JPEG"), saved(small, "GIF"), saved(small, "PNG")
    frames = [small.rotate(90 * turn) for turn in range(4)]
    animated = saved(small, "GIF", save_all=True, append_images=frames)
    return {
        "JPEG and ZIP": jpeg + zipped(jpeg),
        "JPEG and JPEG": jpeg * 2,
        "GIF and script": gif + b"/*';alert(1)//*/",
        "PNG and page": png + b"<html><script>alert(1)</script></html>",
        "PNG and ZIP": png + zipped(png),
        "animated GIF": animated,
        "GIF that ends after its first frame": animated[: len(animated) // 2],
        "animated PNG": saved(small, "PNG", save_all=True, append_images=frames),
        "animated WebP": saved(small, "WEBP", save_all=True, append_images=frames),
        "several pages": saved(small, "TIFF", save_all=True, append_images=frames),
        "JPEG with thumbnail": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(jpeg))
        + b"Exif\0\0" + jpeg + jpeg[2:],
    }  # fmt: skip


def broken(photograph: Image.Image) -> dict[str, bytes]:
    """Pictures that are refused: no decoder may open them, or what they claim is not there."""
    small = photograph.resize((48, 40))
    ftyp = atom(b"ftyp", b"avif\0\0\0\0avifmif1miaf")
    nothing = zlib.compress(b"")
    deep = zlib.compress(bytes(BOMB_MB << 20), 9)
    cut = {
        f"cut animation of {kind}": data[: len(data) // 3]
        for kind, data in whole(photograph).items() if kind in ("animated PNG", "animated WebP")
    }  # fmt: skip
    return {
        **cut,
        "AVIF by its first bytes": ftyp + atom(b"meta", bytes(64)) + atom(b"mdat", bytes(64)),
        "HEIC": atom(b"ftyp", b"heic\0\0\0\0mif1heic") + atom(b"mdat", bytes(99)),
        "SVG": SVG,
        "page": b"<html><body><img src=x onerror=alert(1)></body></html>",
        "ZIP": zipped(b"x"),
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n",
        "icon": saved(small, "ICO"),
        "program": b"\x7fELF" + bytes(100),
        "nothing": b"",
        "huge PNG": png_of(HUGE, HUGE, 16, 6, nothing),
        "wide PNG": png_of(HUGE, 1, 8, 2, nothing),
        "empty PNG": png_of(0, 0, 8, 2, nothing),
        "PNG of 400 million pixels": png_of(20_000, 20_000, 1, 0, deep),
        "PNG whose pixels are not there": png_of(9000, 9000, 8, 2, deep[:2000]),
        "huge GIF": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + saved(small, "GIF")[13:],
        "huge BMP": saved(small, "BMP")[:18] + struct.pack("<ii", 2**30, 2**30),
        "huge PPM": b"P6 100000 100000 255\n" + bytes(100),
        "huge TIFF": bytes(huge_tiff(small)),
        "huge WebP": b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(30),
        "huge JPEG": saved(small, "JPEG").replace(struct.pack(">HH", 40, 48), b"\xff\xff\xff\xff"),
    }  # fmt: skip


def huge_tiff(image: Image.Image) -> bytearray:
    """A TIFF whose header claims 2³⁰ rows and columns."""
    data = bytearray(saved(image, "TIFF"))
    for tag, old in ((256, 48), (257, 40)):
        for kind, size in ((3, "H"), (4, "I")):
            entry = struct.pack(f"<HHI{size}", tag, kind, 1, old)
            at = data.find(entry)
            if at >= 0:
                data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 2**30)
    return data


def either(photograph: Image.Image) -> dict[str, bytes]:
    """Bombs beside the pixels: read without them, or refused; both cost little memory."""
    small = photograph.resize((48, 40))
    deep = zlib.compress(bytes(BOMB_MB << 20), 9)
    jpeg, exif, text = saved(small, "JPEG"), Image.Exif(), chunk(b"tEXt", b"a\0" + b"x" * 99)
    exif[0x9286] = "x" * 60_000
    return {
        "PNG with a text that grows": png_with(small, chunk(b"zTXt", b"a\0\0" + deep)),
        "PNG with a profile that grows": png_with(small, chunk(b"iCCP", b"a\0\0" + deep)),
        "PNG with a page that grows": png_with(small, chunk(b"iTXt", b"a\0\1\0\0\0" + deep)),
        "PNG with thousands of texts": png_with(small, *[text] * 9999),
        "PNG with a long text": png_with(small, chunk(b"tEXt", b"a\0" + bytes(8 << 20))),
        "PNG with pixels to spare": png_of(8, 8, 8, 0, deep),
        "JPEG with a large EXIF": saved(small, "JPEG", exif=exif.tobytes()),
        "JPEG with comments": jpeg[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 50 + jpeg[2:],
        "JPEG after a page": b"<script>alert(1)</script>" + jpeg,
        "AVIF": avif(small),
        "thousand frames": saved(
            small.resize((8, 8)), "GIF", save_all=True,
            append_images=[small.resize((8, 8)).rotate(n) for n in range(1000)],
        ),
    }  # fmt: skip


def avif(image: Image.Image) -> bytes:
    """The picture as AVIF, where Pillow can write it."""
    try:
        return saved(image, "AVIF")
    except (KeyError, OSError):
        return atom(b"ftyp", b"avif\0\0\0\0avifmif1miaf")


def all_pictures(photograph: Image.Image) -> Iterator[bytes]:
    """As seeds of mutations: those that are small."""
    for pictures in (whole(photograph), broken(photograph), either(photograph)):
        yield from (data for data in pictures.values() if 0 < len(data) < 100_000)
