"""Average precision of each class, for training and evaluation alike. NumPy and scikit-learn."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def average_precisions(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> tuple[float | None, ...]:
    """Average precision of each class; None for a class without images.

    `labels` [n, K] are 0 or 1, `scores` [n, K] any real numbers. The definition is
    scikit-learn's: the mean over a class's images of the precision at their rank, without
    interpolation. If any score is NaN or infinite, the result is NaN.
    """
    from sklearn.metrics import average_precision_score  # takes a second to import

    finite = bool(np.isfinite(scores).all())

    def of_class(label: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
        if not label.any():
            return None
        return float(average_precision_score(label, score)) if finite else math.nan

    return tuple(of_class(*columns) for columns in zip(labels.T, scores.T, strict=True))


def mean_average_precision(precisions: Sequence[float | None]) -> float:
    """Mean over the classes that have images; 0 if none has."""
    values = [precision for precision in precisions if precision is not None]
    return sum(values) / max(1, len(values))
