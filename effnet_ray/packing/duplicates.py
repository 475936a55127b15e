"""The same picture twice: byte for byte by digest, and nearly so by a perceptual hash.

The hash is a *pHash*: of the 32×32 grey picture's discrete cosine transform the 64 lowest
frequencies, but not the mean, one bit for each that is above their median (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Pictures whose bits
differ in at most 5 are taken for nearly equal; scaling, brightness and encoding again change
fewer. A gradient hash (dHash) lost a fifth of the pictures made a tenth brighter.
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
"""[n, 2]: places of two images, the lower first."""

NEAR_BITS = 5
SIGNIFICANT = 0.1
"""What a frequency must have above the median; rounding gives less."""
PLAIN_BITS = 16
"""With fewer bits set a picture is too plain for its hash to say anything."""
GREY = cv2.COLOR_RGB2GRAY
NEIGHBOURS = 8
"""Of images that agree in three bytes each is compared with so many: enough for pairs and small
families, and linear in the number of images."""
LISTED = 100_000
"""So many pairs are listed at most; where there are more, half of them are equal ones."""


def phash(pixels: Pixels) -> int:
    """The 64-bit hash of RGB pixels [H, W, 3]."""
    grey = cv2.cvtColor(cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA), GREY)
    low = cv2.dct(grey.astype(np.float32))[:9, :9].ravel()[1:65]
    return int.from_bytes(np.packbits(low > np.median(low) + SIGNIFICANT).tobytes(), "big")


def near_pairs(hashes: Hashes) -> Pairs:
    """Pairs of images whose hashes differ in at most NEAR_BITS bits."""
    places = np.flatnonzero(np.bitwise_count(hashes) >= PLAIN_BITS)
    found = [places[pairs] for pairs in _candidates(hashes[places])]
    every = np.sort(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=1)
    pairs = np.unique(every, axis=0)
    return pairs[distance(hashes, pairs) <= NEAR_BITS]


def distance(hashes: Hashes, pairs: Pairs) -> npt.NDArray[np.uint8]:
    """Differing bits of each pair, 0 to 64."""
    differing: npt.NDArray[np.uint8] = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    return differing


def _candidates(hashes: Hashes) -> Iterator[Pairs]:
    """Pairs that agree in three of the hash's eight bytes: five differing bits touch five."""
    octets = hashes[:, None] >> np.arange(0, 64, 8, dtype=np.uint64) & np.uint64(255)
    for three in itertools.combinations(range(8), 3):
        key = octets[:, three] @ np.asarray([1, 1 << 8, 1 << 16], np.uint64)
        order = np.argsort(key, kind="stable")
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            same = key[order[:-step]] == key[order[step:]]
            yield np.stack([order[:-step][same], order[step:][same]], axis=1)


def duplicates_table(seen: pa.Table, split: Ints, classes: Sequence[str]) -> pa.Table:
    """Pairs of equal (distance 0) and nearly equal images (differing bits, at least 1).

    `seen` are all images by id, with `path`, `label`, `digest`, `phash` and `reason`; `split` is
    every image's. What was left out is nobody's duplicate.
    """
    good = np.flatnonzero([not reason for reason in column_values(seen, "reason")])
    digest = splits.factorize(column_values(seen.take(good), "digest"))
    hashes = seen["phash"].to_numpy()[good]
    near = near_pairs(hashes)
    near = near[digest[near[:, 0]] != digest[near[:, 1]]]
    exact = _equal_pairs(digest)[: max(LISTED // 2, LISTED - len(near))]
    near = near[: LISTED - len(exact)]
    columns: dict[str, object] = {}
    for prefix, side in (("", 0), ("other_", 1)):
        ids = good[np.concatenate([exact, near])[:, side]]
        these = seen.take(ids)
        columns[f"{prefix}path"] = column_values(these, "path")
        columns[f"{prefix}split"] = [SPLITS[split[i]] for i in ids]
        columns[f"{prefix}label"] = [
            format_label(label, classes) for label in column_values(these, "label")
        ]
    far = np.maximum(1, distance(hashes, near)).astype(np.int64)
    columns["distance"] = np.concatenate([np.zeros(len(exact), np.int64), far])
    return pa.table(columns)


def _equal_pairs(digest: Ints) -> Pairs:
    """Every image and the next one with the same digest."""
    order = np.argsort(digest, kind="stable")
    same = digest[order[:-1]] == digest[order[1:]]
    return np.stack([order[:-1][same], order[1:][same]], axis=1)
