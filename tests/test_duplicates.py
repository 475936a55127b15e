"""Nearly equal pictures are found; different ones are not."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from effnet_ray.packing import duplicates
from effnet_ray.packing.duplicates import NEAR_BITS, distance, near_pairs, phash


def tiles(count: int) -> list[Image.Image]:
    """Different parts of two photographs."""
    random, result = np.random.default_rng(0), []
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for index in range(count):
        left, top = int(random.integers(440)), int(random.integers(227))
        result.append(pictures[index % 2].crop((left, top, left + 200, top + 200)))
    return result


def hashed(images: list[Image.Image]) -> Any:
    return np.asarray([phash(np.asarray(image)) for image in images], np.uint64)


def again(image: Image.Image, kind: str) -> Image.Image:
    """The picture as it comes back from somewhere else."""
    sink = io.BytesIO()
    if kind == "smaller":
        return image.resize((120, 120), Image.Resampling.BICUBIC)
    if kind == "brighter":
        return ImageEnhance.Brightness(image).enhance(1.1)
    image.save(sink, "WEBP" if kind == "WebP" else "JPEG", quality=60)
    return Image.open(sink).convert("RGB")


@pytest.mark.parametrize("kind", ["JPEG", "WebP", "smaller", "brighter"])
def test_99_of_100_pictures_encoded_again_are_found(kind: str) -> None:
    pictures = tiles(200)
    hashes = hashed(pictures + [again(picture, kind) for picture in pictures])
    result = {tuple(pair) for pair in near_pairs(hashes).tolist()}
    assert sum((i, i + 200) in result for i in range(200)) >= 198


def test_different_pictures_are_rarely_taken_for_equal() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    assert len(near_pairs(hashes)) <= 20_000 / 1000


def test_exactly_the_pairs_within_five_bits_are_found() -> None:
    random = np.random.default_rng(1)
    base = random.integers(0, 2**64, 40, np.uint64)
    flips = [int(n) for n in random.integers(0, 12, 40)]
    other = [
        int(value) ^ sum(1 << int(bit) for bit in random.choice(64, n, replace=False))
        for value, n in zip(base, flips, strict=True)
    ]
    hashes = np.concatenate([base, np.asarray(other, np.uint64)])
    every = np.stack(np.triu_indices(80, 1), axis=1)
    expected = every[distance(hashes, every) <= NEAR_BITS]
    assert np.array_equal(near_pairs(hashes), expected)


def test_plain_pictures_are_not_compared() -> None:
    white = Image.new("RGB", (50, 50), "white")
    black = Image.new("RGB", (50, 50), "black")
    assert len(near_pairs(hashed([white, black, white]))) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare_is_no_pair(count: int) -> None:
    assert near_pairs(hashed(tiles(count))).shape == (0, 2)


def test_many_equal_images_leave_room_for_the_nearly_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 6)
    hashes = hashed(tiles(2))
    digests = ["same"] * 20 + ["other"]
    seen = pa.table(
        {
            "path": [f"{n:02d}.jpg" for n in range(21)],
            "label": [0] * 21,
            "digest": digests,
            "phash": pa.array([int(hashes[0])] * 20 + [int(hashes[0]) ^ 1], pa.uint64()),
            "reason": [""] * 21,
        }
    )
    result = duplicates.duplicates_table(seen, np.zeros(21, np.int64), ["cat"])[
        "distance"
    ].to_pylist()
    assert result == [0, 0, 0, 1, 1, 1]
