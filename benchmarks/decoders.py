"""Milliseconds per image of the decoders and resizers to choose from, on one thread.

    python benchmarks/decoders.py [--images 200] [--rounds 7]

The 500×375 JPEGs of `photographs`, and the same at 1536×1152 for decoding coarsely. Contestants
take turns, medians are printed, and for what is not exact the mean distance, in levels of 255,
from the exact decode or from Pillow's antialiased bicubic. The last line is JSON.
"""

import hashlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import photographs
import simplejpeg
import torch
import torchvision
import tyro
from PIL import Image

from effnet_ray import Recipe
from effnet_ray.data.decode import Pixels, decode
from effnet_ray.data.views import crop_box, train_view

SIZE = 224
RECIPE = Recipe(weights="none")
SPEC = RECIPE.variant_spec.input_spec()


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 200
    """JPEGs of each size"""
    rounds: int = 7
    """rounds of each contestant"""


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """From bytes to pixels."""
    return {
        "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB"),
        "simplejpeg, fast upsampling": lambda data: simplejpeg.decode_jpeg(
            data, "RGB", fastupsample=True
        ),
        "simplejpeg, fast upsampling and DCT": lambda data: simplejpeg.decode_jpeg(
            data, "RGB", fastupsample=True, fastdct=True
        ),
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
        "torchvision": lambda data: torchvision.io.decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
        ),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }


def resizers() -> dict[str, Callable[[Pixels], Any]]:
    """From a crop to a view."""

    def opencv(method: int) -> Callable[[Pixels], Any]:
        return lambda crop: cv2.resize(crop, (SIZE, SIZE), interpolation=method)

    def pillow(method: Image.Resampling) -> Callable[[Pixels], Any]:
        return lambda crop: np.asarray(Image.fromarray(crop).resize((SIZE, SIZE), method))

    return {
        "OpenCV bilinear": opencv(cv2.INTER_LINEAR),
        "OpenCV bicubic": opencv(cv2.INTER_CUBIC),
        "OpenCV area": opencv(cv2.INTER_AREA),
        "Pillow bilinear": pillow(Image.Resampling.BILINEAR),
        "Pillow bicubic": pillow(Image.Resampling.BICUBIC),
    }


def full_view(data: bytes) -> Pixels:
    """A training view without coarse decoding: all pixels, then areas."""
    pixels = decode(data)
    height, width = pixels.shape[:2]
    top, left, tall, wide = crop_box(height, width, RECIPE, Random(0))
    crop = pixels[top : top + tall, left : left + wide]
    view: Pixels = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return view


def our_view(data: bytes) -> Pixels:
    """The training view as it is."""
    return train_view(data, SPEC, RECIPE, Random(0))


def race(
    contestants: dict[str, Callable[[Any], Any]], inputs: list[Any], rounds: int
) -> dict[str, float]:
    """Median milliseconds per input."""
    result: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            begin = time.perf_counter()
            for item in inputs:
                contestant(item)
            result[name].append((time.perf_counter() - begin) / len(inputs) * 1e3)
    return {name: round(statistics.median(times), 3) for name, times in result.items()}


def distance(
    one: Callable[[Any], Pixels], other: Callable[[Any], Pixels], inputs: list[Any]
) -> float:
    """Mean absolute difference, levels of 255."""
    return round(float(np.mean([np.abs(one(x).astype(int) - other(x)).mean() for x in inputs])), 2)


def jpegs(count: int, width: int, height: int) -> list[bytes]:
    """Some JPEGs as bytes."""
    with tempfile.TemporaryDirectory() as name:
        photographs.make(Path(name), count, width, height)
        return [path.read_bytes() for path in sorted(Path(name).rglob("*.jpg"))]


def crops(pictures: list[bytes]) -> list[Pixels]:
    """A random crop of each, contiguous."""
    random, result = Random(0), []
    for data in pictures:
        pixels = decode(data)
        height, width = pixels.shape[:2]
        top, left, tall, wide = crop_box(height, width, RECIPE, random)
        result.append(np.ascontiguousarray(pixels[top : top + tall, left : left + wide]))
    return result


def main(settings: Settings) -> None:
    """Race and print."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    small = jpegs(settings.images, 500, 375)
    large = jpegs(settings.images // 4, 1536, 1152)
    pieces = crops(small)
    decoding, resizing = decoders(), resizers()
    views = {"our view": our_view, "full view": full_view}
    times = {
        "decode 500×375": race(decoding, small, settings.rounds),
        "resize a crop": race(resizing, pieces, settings.rounds),
        "view of 500×375": race(views, small, settings.rounds),
        "view of 1536×1152": race(views, large, settings.rounds),
    }
    away = {
        name: distance(decoding[name], decoding["simplejpeg"], small)
        for name in decoding
        if name.startswith("simplejpeg,")
    } | {name: distance(resizing[name], resizing["Pillow bicubic"], pieces) for name in resizing}
    for title, race_times in times.items():
        print(title)
        for name, value in race_times.items():
            off = f"  {away[name]} levels away" if name in away else ""
            print(f"  {name:<36} {value:7.3f} ms{off}")
    print(
        json.dumps(
            {
                "vs_full_decode": {
                    title: round(race_times["full view"] / race_times["our view"], 2)
                    for title, race_times in times.items()
                    if title.startswith("view")
                },
                "ms": times,
                "levels_away": away,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "simplejpeg": simplejpeg.__version__,
                "opencv": cv2.__version__,
            },
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
