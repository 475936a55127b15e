"""Which files are images: by their names, and otherwise by their first bytes."""

import itertools
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from effnet_ray import storage
from effnet_ray.data.image_checks import JPEG, PNG, RIFF

DECODABLE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
IMAGE_SUFFIXES = (*DECODABLE_SUFFIXES, ".avif", ".heic", ".heif", ".jp2", ".jxl")
"""All suffixes of image files. Those that are not decoded are quarantined by name, not skipped."""

SIGNATURES = (
    JPEG + b"\xff",
    PNG,
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
)
"""First bytes of JPEG, PNG, GIF, TIFF in either byte order, JPEG XL and JPEG 2000."""
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")
"""Major brands of AVIF and HEIC (ISO 23008-12), after `ftyp`."""
NETPBM = re.compile(rb"P[1-6]\s+(\d|#)")
"""PBM, PGM and PPM: a number, or a comment, follows; text may start with P1 too."""
SIGNATURE_BYTES = 16
BATCH = 10_000
"""Files whose reading is planned at a time: a million plans would take a gigabyte."""
READERS = 32
"""Files whose first bytes are read at a time; reading is mostly waiting for storage."""


def find_image_files(folder: str, paths: Iterable[str], sizes: Mapping[str, int]) -> set[str]:
    """Those of the files that are images; `sizes` are bytes by path below the folder.

    A file with an image's suffix is one, even if it is damaged. Of any other the first bytes
    decide, so that an image named `IMG_1` or `cat.jpg.1` is not overlooked. Raises StorageError.
    """
    images, others = set[str](), list[str]()
    for path in paths:
        if path.lower().endswith(IMAGE_SUFFIXES):
            images.add(path)
        elif sizes[path] >= SIGNATURE_BYTES:
            others.append(path)
    images.update(_with_signature(folder, others))
    return images


def _with_signature(folder: str, paths: list[str]) -> Iterable[str]:
    def has_signature(path: str) -> bool:
        return is_image(storage.read_range(storage.join(folder, path), 0, SIGNATURE_BYTES))

    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(paths), BATCH):
            batch = paths[first : first + BATCH]
            yield from itertools.compress(batch, pool.map(has_signature, batch))


def is_image(head: bytes) -> bool:
    """Whether a file that starts with these `SIGNATURE_BYTES` is an image of a known format."""
    if head.startswith(SIGNATURES):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] in BRANDS
    if head.startswith(RIFF):
        return head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return head[6:10] == b"\0\0\0\0"  # reserved (BITMAPFILEHEADER); text may start with BM
    return bool(NETPBM.match(head))
