"""Average precision of classes, each by itself: the same for training and evaluation. Numpy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def average_precisions(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> tuple[float | None, ...]:
    """Of every class, of labels [n, K] of 0 and 1 and scores [n, K]; None where it has no images.

    The mean, over a class's images, of the precision at their place (scikit-learn's, without
    interpolation). Not a number where any score is none.
    """
    from sklearn.metrics import average_precision_score  # takes a second to import

    def of(own: npt.NDArray[Any], said: npt.NDArray[Any]) -> float | None:
        if not own.any():
            return None
        return float(average_precision_score(own, said)) if finite else math.nan

    finite = bool(np.isfinite(scores).all())
    return tuple(of(own, said) for own, said in zip(labels.T, scores.T, strict=True))


def mean_of(precisions: Sequence[float | None]) -> float:
    """The mean over the classes that have images; 0 where none has."""
    found = [each for each in precisions if each is not None]
    return sum(found) / max(1, len(found))
