"""Mutated images through the train path, in a process of their own: `python poison.py SEED COUNT`.

Prints one JSON line: how many gave a view, how many an ImageError, the peak of memory beyond what
the process had before the first, and the slowest image.
"""

import io
import json
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

from effnet_ray.data.decode import decode
from effnet_ray.data.image_checks import PNG
from effnet_ray.data.views import train_view
from effnet_ray.errors import ImageError
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec
from support.hostile_pictures import all_pictures

Mutator = Callable[[bytearray, np.random.Generator], None]
SPEC = InputSpec(resolution=64, crop=0.875)
HOSTILE_SHARE = 0.25
HUGE = (0, 1, 255, 4096, 8192, 16383, 30_000, 65_535)


def flip_bits(data: bytearray, random: np.random.Generator) -> None:
    """One to sixteen bits."""
    for place in random.integers(len(data), size=random.integers(1, 17)):
        data[place] ^= 1 << int(random.integers(8))


def overwrite(data: bytearray, random: np.random.Generator) -> None:
    """A run of random or equal bytes."""
    start, length = int(random.integers(len(data))), int(random.integers(1, 65))
    fill = (
        random.bytes(length) if random.random() < 0.5 else bytes([random.integers(256)]) * length
    )
    data[start : start + length] = fill


def truncate(data: bytearray, random: np.random.Generator) -> None:
    """The file's beginning."""
    del data[int(random.integers(len(data))) :]


def splice(data: bytearray, random: np.random.Generator) -> None:
    """A piece copied or moved elsewhere."""
    first, last = sorted(random.integers(len(data), size=2).tolist())
    piece, place = data[first:last], int(random.integers(len(data)))
    if random.random() < 0.5:
        del data[first:last]
    data[place:place] = piece


def insert(data: bytearray, random: np.random.Generator) -> None:
    """Random bytes, some hundreds at most."""
    place = int(random.integers(len(data)))
    data[place:place] = random.bytes(int(random.integers(1, 300)))


def edit_length(data: bytearray, random: np.random.Generator) -> None:
    """A 16 or 32-bit field becomes a number that lengths and sizes do not expect."""
    value = int(random.choice([0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF]))
    place = int(random.integers(min(len(data), 256)))
    order: str = random.choice(["<", ">"])
    field = struct.pack(f"{order}I", value) if random.random() < 0.5 else struct.pack(
        f"{order}H", value & 0xFFFF
    )  # fmt: skip
    data[place : place + len(field)] = field


def edit_size(data: bytearray, random: np.random.Generator) -> None:
    """Another width and height in the header."""
    width, height = (int(n) for n in random.choice(HUGE, size=2))
    if data[:8] == PNG:
        data[16:24] = struct.pack(">II", width, height)
    elif data[:4] == b"RIFF":
        place = {b"VP8X": 24, b"VP8L": 21}.get(bytes(data[12:16]), 26)
        data[place : place + 4] = struct.pack("<HH", width, height)
    else:
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)


def inflate_and_cut(data: bytearray, random: np.random.Generator) -> None:
    """A PNG whose pixels end too early, or are altered before they are compressed again."""
    at = data.find(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    try:
        pixels = bytearray(zlib.decompress(data[at + 4 : at + 4 + length]))
    except zlib.error:  # no PNG, or one that is damaged already
        return flip_bits(data, random)
    if pixels:
        (truncate if random.random() < 0.5 else flip_bits)(pixels, random)
    packed = zlib.compress(bytes(pixels))
    data[at - 4 : at + 8 + length] = struct.pack(">I", len(packed)) + b"IDAT" + packed + bytes(4)


MUTATORS: tuple[Mutator, ...] = (
    flip_bits, overwrite, truncate, splice, insert, edit_length, edit_size, inflate_and_cut
)  # fmt: skip


def fix_crcs(data: bytearray) -> None:
    """Make a PNG's chunks true again, so that what is in them reaches the decoder."""
    start = 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start + 4 : end]))
        start = end + 4


def seeds() -> list[bytes]:
    """Small photographs in the three formats and their kinds."""
    from sklearn.datasets import load_sample_images

    result = []
    for photograph, size in zip(load_sample_images().images, ((112, 80), (64, 96)), strict=True):
        image = Image.fromarray(photograph).resize(size)
        ways: list[tuple[str, str, dict[str, object]]] = [
            ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}),
            ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"exif": b"Exif\0\0" + turned()}),
            ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "LA", {}), ("PNG", "1", {}),
            ("PNG", "RGBA", {"exif": turned()}),
            ("WEBP", "RGB", {}), ("WEBP", "RGBA", {}), ("WEBP", "RGB", {"lossless": True}),
        ]  # fmt: skip
        for kind, mode, options in ways:
            buffer = io.BytesIO()
            image.convert(mode).save(buffer, kind, **options)
            result.append(buffer.getvalue())
    return result


def hostile_seeds() -> list[bytes]:
    """Bombs, polyglots, animations and other formats, as they are before they are mutated."""
    from sklearn.datasets import load_sample_images

    return list(all_pictures(Image.fromarray(load_sample_images().images[0])))


def turned() -> bytes:
    """EXIF, without its prefix, of a picture that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes().removeprefix(b"Exif\0\0")


def mutated(whole: list[bytes], random: np.random.Generator) -> bytes:
    """One of the images after one to three mutations; half of the PNGs with true CRCs."""
    data = bytearray(whole[int(random.integers(len(whole)))])
    for index in random.integers(len(MUTATORS), size=random.integers(1, 4)):
        if data:
            MUTATORS[index](data, random)
    if data[:8] == PNG and random.random() < 0.5:
        fix_crcs(data)
    return bytes(data)


def outcome(data: bytes, seed: int) -> str:
    """Whether it is a view or an error; anything else is raised."""
    try:
        pixels = decode(data)
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
        wrong = False
    except ImageError as error:
        wrong = True
        assert str(error)
    try:
        view = train_view(data, SPEC, Recipe(), Random(seed))
    except ImageError:
        return "error"
    assert not wrong or data[:2] == b"\xff\xd8", "a view of an image that does not decode"
    assert view.shape == (64, 64, 3) and view.dtype == np.uint8 and view.flags.c_contiguous
    return "view"


def main(seed: int, count: int) -> dict[str, float]:
    """Mutate and read `count` images."""
    warnings.simplefilter("ignore")
    whole, random = seeds(), np.random.default_rng(seed)
    assert [outcome(data, 0) for data in whole] == ["view"] * len(whole)
    hostile = hostile_seeds()
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    counts = {"view": 0, "error": 0}
    for index in range(count):
        chosen = hostile if random.random() < HOSTILE_SHARE else whole
        data, began = mutated(chosen, random), time.perf_counter()
        counts[outcome(data, index)] += 1
        slowest = max(slowest, time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**counts, "grown_mb": (after - before) / 1024, "slowest_s": slowest}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
