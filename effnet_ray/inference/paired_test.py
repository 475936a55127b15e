"""Whether one release is better than another: both on the same images.

Most images are equally easy for both, so accuracies whose intervals overlap may still differ for
sure. Only the images count that one release has right and the other has wrong.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from effnet_ray.errors import EvaluationError
from effnet_ray.train.metric_definitions import Z_95

LEVEL = 0.05
"""Probability of a difference by chance from which it counts as one."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A release compared with another one. Field names are keys of JSON."""

    images: int
    better: int
    """Images that this release has right and the other has wrong, by the highest score."""
    worse: int
    difference: float
    """This release's top-1 minus the other's, -1 to 1."""
    interval: tuple[float, float]
    """The 95 % confidence interval of the difference."""
    p_value: float
    """Probability of so uneven numbers if both were equally good: McNemar's test, exact
    (McNemar 1947), two-sided."""

    @property
    def is_better(self) -> bool:
        """Whether this release is better, not by chance."""
        return self.better > self.worse and self.p_value < LEVEL

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}): "
            f"{self.better} images better, {self.worse} worse of {self.images:,}, "
            f"p = {self.p_value:.2g}"
        )


def paired_test(hits: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> PairedTest:
    """Compare two releases by which images [n] they have right, in the same order.

    Raises EvaluationError if they are not the same images.
    """
    if len(hits) != len(other) or not len(hits):
        raise EvaluationError(
            f"{len(hits):,} and {len(other):,} images were evaluated: the data changed meanwhile; "
            "if it did not, report this as a bug"
        )
    images, better, worse = len(hits), int((hits & ~other).sum()), int((~hits & other).sum())
    difference = (better - worse) / images
    deviation = math.sqrt(max(0.0, better + worse - (better - worse) ** 2 / images)) / images
    interval = max(-1.0, difference - Z_95 * deviation), min(1.0, difference + Z_95 * deviation)
    test: Any = binomtest(better, better + worse) if better + worse else None
    return PairedTest(
        images, better, worse, difference, interval, float(test.pvalue) if test else 1.0
    )
