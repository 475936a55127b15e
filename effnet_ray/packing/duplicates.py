"""Finds duplicate images: byte-identical by digest, nearly identical by a perceptual hash.

The hash is a *pHash*: the discrete cosine transform of the 32×32 grey image, of which the 64
lowest frequencies except the mean give one bit each, set if it is above their median (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Images whose hashes
differ in at most 5 bits count as nearly identical; scaling, brightness changes and re-encoding
change fewer. A gradient hash (dHash) missed a fifth of the images made a tenth brighter.
"""

import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from effnet_ray.data.classes import format_label
from effnet_ray.data.decode import Pixels
from effnet_ray.data.manifest import SPLITS
from effnet_ray.packing import splits
from effnet_ray.packing.splits import Ints
from effnet_ray.storage.parquet import column_values

Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]
"""[n, 2]: positions of two images, the lower first."""

NEAR_BITS = 5
"""Largest number of differing bits of nearly identical images. `test_duplicates` finds 99 of 100
photographs that were re-encoded, shrunk or made a tenth brighter; two random hashes are as close
with a probability of 4.5e-13."""
MIN_EXCESS = 0.1
"""A bit is set if its frequency is this much above the median. Rounding errors are smaller:
float32 has steps of 0.0005 at the largest frequency, 8,160, the mean of a white image."""
MIN_SET_BITS = 16
"""The hash of an image with fewer set bits is not distinctive, so it is not compared.
Chosen, not measured."""
NEIGHBOURS = 8
"""Maximum number of images, of those that agree in three bytes, that each image is compared with:
enough for pairs and small groups, and linear in the number of images."""
MAX_PAIRS = 100_000
"""Maximum number of listed pairs. If there are more, half of those listed are identical."""


def phash(pixels: Pixels) -> int:
    """Return the 64-bit hash of RGB pixels [H, W, 3]."""
    return hash_small(small_grey(pixels))


def hash_small(grey: npt.NDArray[np.uint8]) -> int:
    """Return the 64-bit hash of the values of `small_grey`."""
    low = cv2.dct(grey.astype(np.float32))[:9, :9].ravel()[1:65]
    return int.from_bytes(np.packbits(low > np.median(low) + MIN_EXCESS).tobytes(), "big")


def small_grey(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Return 32×32 grey values of RGB pixels [H, W, 3], as means of areas.

    First by a whole factor, which OpenCV does several times faster than by any other; it leaves
    out less than a 128th of a side.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    factor = max(1, min(grey.shape) // 128)
    height, width = (side // factor for side in grey.shape)
    if factor > 1:
        whole = grey[: height * factor, : width * factor]
        grey = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    small: npt.NDArray[np.uint8] = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    return small


def near_pairs(hashes: Hashes) -> Pairs:
    """Return pairs of images whose hashes differ in at most NEAR_BITS bits."""
    positions = np.flatnonzero(np.bitwise_count(hashes) >= MIN_SET_BITS)
    candidates = [positions[pairs] for pairs in _candidates(hashes[positions])]
    ordered = np.sort(np.concatenate([np.empty((0, 2), np.int64), *candidates]), axis=1)
    pairs = np.unique(ordered, axis=0)
    return pairs[distance(hashes, pairs) <= NEAR_BITS]


def distance(hashes: Hashes, pairs: Pairs) -> npt.NDArray[np.uint8]:
    """Return the differing bits of each pair, 0 to 64."""
    differing: npt.NDArray[np.uint8] = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    return differing


def _candidates(hashes: Hashes) -> Iterator[Pairs]:
    """Yield pairs that agree in three of the hash's eight bytes.

    Five differing bits are in at most five bytes, so three bytes always agree.
    """
    octets = hashes[:, None] >> np.arange(0, 64, 8, dtype=np.uint64) & np.uint64(255)
    for three in itertools.combinations(range(8), 3):
        key = octets[:, three] @ np.asarray([1, 1 << 8, 1 << 16], np.uint64)
        order = np.argsort(key, kind="stable")
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            same = key[order[:-step]] == key[order[step:]]
            yield np.stack([order[:-step][same], order[step:][same]], axis=1)


def duplicates_table(records: pa.Table, split: Ints, classes: Sequence[str]) -> pa.Table:
    """Return pairs of identical (distance 0) and nearly identical images (differing bits, ≥ 1).

    `records` are all images by id, with `path`, `label`, `digest`, `phash` and `reason`; `split`
    is every image's. Unreadable images are left out.
    """
    readable = np.flatnonzero([not reason for reason in column_values(records, "reason")])
    digest = splits.factorize(column_values(records.take(readable), "digest"))
    hashes = records["phash"].to_numpy()[readable]
    near = near_pairs(hashes)
    near = near[digest[near[:, 0]] != digest[near[:, 1]]]
    exact = _identical_pairs(digest)[: max(MAX_PAIRS // 2, MAX_PAIRS - len(near))]
    near = near[: MAX_PAIRS - len(exact)]
    columns: dict[str, object] = {}
    for prefix, side in (("", 0), ("other_", 1)):
        ids = readable[np.concatenate([exact, near])[:, side]]
        images = records.take(ids)
        columns[f"{prefix}path"] = column_values(images, "path")
        columns[f"{prefix}split"] = [SPLITS[split[i]] for i in ids]
        columns[f"{prefix}label"] = [
            format_label(label, classes) for label in column_values(images, "label")
        ]
    near_distance = np.maximum(1, distance(hashes, near)).astype(np.int64)
    columns["distance"] = np.concatenate([np.zeros(len(exact), np.int64), near_distance])
    return pa.table(columns)


def _identical_pairs(digest: Ints) -> Pairs:
    """Return every image with the next one that has the same digest."""
    order = np.argsort(digest, kind="stable")
    same = digest[order[:-1]] == digest[order[1:]]
    return np.stack([order[:-1][same], order[1:][same]], axis=1)
