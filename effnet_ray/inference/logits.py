"""Probabilities and ranks from logits: in torch for the device, in NumPy for the metrics.

Ranks follow training's evaluation (`train.metrics`): of equal logits the lower class comes first,
and NaN comes before every number, as in `argmax`. A network with equal logits for all classes is
therefore not right about every image.

Probabilities are those of calibrated logits, `Calibration.scale * logits + bias`, wherever they
are used: evaluations, predictions, answers of the server and exports. Ranks, predicted classes and
losses are those of the plain logits; with one class per image a temperature changes no rank.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from effnet_ray.release_format.calibration import Calibration

PLAIN = Calibration()
"""Changes no logit."""


def probabilities(logits: Tensor, calibration: Calibration = PLAIN, *, multilabel: bool) -> Tensor:
    """Softmax over the classes of logits [B, K]; with several labels per image a sigmoid each."""
    if calibration.changes_logits:
        scale, bias = (
            values[0] if len(values) == 1 else logits.new_tensor(values)
            for values in (calibration.scale, calibration.bias)
        )
        logits = logits * scale + bias
    return logits.sigmoid() if multilabel else logits.softmax(1)


def numpy_probabilities(
    logits: npt.NDArray[Any], calibration: Calibration = PLAIN, *, multilabel: bool
) -> npt.NDArray[np.float64]:
    """`probabilities` of a NumPy array, in float64."""
    logarithms = log_probabilities(logits, calibration, multilabel=multilabel)
    values: npt.NDArray[np.float64] = np.exp(logarithms)
    return values


def log_probabilities(
    logits: npt.NDArray[Any], calibration: Calibration = PLAIN, *, multilabel: bool
) -> npt.NDArray[np.float64]:
    """The logarithm of `numpy_probabilities`, without overflow."""
    logits = logits.astype(np.float64)
    if calibration.changes_logits:
        logits = logits * np.asarray(calibration.scale) + np.asarray(calibration.bias)
    if multilabel:
        log_sigmoid: npt.NDArray[np.float64] = -np.logaddexp(0.0, -logits)
        return log_sigmoid
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_softmax: npt.NDArray[np.float64] = shifted - np.log(
            np.exp(shifted).sum(axis=1, keepdims=True)
        )
    return log_softmax


def predicted_class(logits: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The first class in the ranking, [n], of logits [n, K]."""
    classes: npt.NDArray[np.int64] = _comparable(logits).argmax(axis=1)
    return classes


def label_rank(logits: npt.NDArray[Any], label: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number of classes that rank before the label, [n], of logits [n, K] and labels [n]."""
    values = _comparable(logits)
    label_logit = values[np.arange(len(label)), label][:, None]
    lower_class = np.arange(values.shape[1]) < label[:, None]
    before = (values > label_logit) | ((values == label_logit) & lower_class)
    ranks: npt.NDArray[np.int64] = before.sum(axis=1)
    return ranks


def first_label_rank(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number of classes that rank before an image's first label, [n]; K if it has no label.

    `labels`: [n, K] of 0 and 1.
    """
    order = np.argsort(-_comparable(logits), axis=1, kind="stable")
    ordered = np.take_along_axis(labels, order, axis=1)
    ranks: npt.NDArray[np.int64] = np.where(
        ordered.any(axis=1), ordered.argmax(axis=1), labels.shape[1]
    )
    return ranks


def _comparable(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.nan_to_num(logits, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return values
