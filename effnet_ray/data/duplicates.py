"""The same picture twice: byte for byte by digest, and nearly so by a perceptual hash.

The hash is a *pHash*: of the 32×32 grey picture's discrete cosine transform the 64 lowest
frequencies, but not the mean, one bit for each that is above their median (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Pictures whose bits
differ in at most 5 are taken for nearly equal; scaling, brightness and encoding again change
fewer. A gradient hash (dHash) lost a fifth of the pictures made a tenth brighter.
"""

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from effnet_ray.data.images import Pixels

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
