"""JPEGs in class folders, made from the two real photographs that scikit-learn ships."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

QUALITIES = (80, 85, 90, 95)


def make(folder: Path, count: int, width: int, height: int, seed: int = 0) -> None:
    """Write `count` JPEGs of width × height px (quality 80 to 95) into folder/china and /flower.

    Each is a random part of its photograph, half of them mirrored; no two are alike.
    """
    random = np.random.default_rng(seed)
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for name in ("china", "flower"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        source = sources[index % 2]
        wide = int(source.width * random.uniform(0.6, 1.0))
        tall = min(source.height, wide * height // width)
        left = int(random.integers(source.width - wide + 1))
        top = int(random.integers(source.height - tall + 1))
        part = source.crop((left, top, left + wide, top + tall))
        part = part.resize((width, height), Image.Resampling.LANCZOS)
        if random.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        path = folder / ("china", "flower")[index % 2] / f"{index:06d}.jpg"
        part.save(path, quality=QUALITIES[index // 2 % 4])
