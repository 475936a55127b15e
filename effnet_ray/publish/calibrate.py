"""Fits how a release makes probabilities of its logits, on the eval images of its best epoch.

One class per image: a temperature (Guo et al. 2017, arXiv 1706.04599). Any number of classes: a
scale and a bias for each class (Platt 1999, "Probabilistic Outputs for Support Vector Machines"),
and the probability from which it is predicted, for the best F1.

The reported errors are of images that a fit did not see: each fifth of the images is calibrated by
a fit on the others. If their loss does not fall, or the error rises, nothing is calibrated.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize

from effnet_ray.inference.logits import PLAIN, numpy_probabilities
from effnet_ray.inference.metric_sums import ReliabilityCounts
from effnet_ray.release_format.calibration import THRESHOLD, Calibration

FOLDS = 5
MIN_IMAGES = 20
"""Fewer eval images calibrate nothing: a fold would have three or less. Chosen, not measured."""
MIN_POSITIVES = 10
"""A class with fewer eval images, or with fewer that lack it, keeps its logits and the threshold
0.5: without positives a fit would learn that it never occurs. Chosen, not measured."""
FITTED_TEMPERATURES = 0.05, 20.0
PRIOR = 1.0
"""Strength of the prior on Platt's scale and bias, which are 1 and 0 without data: as much as one
image. Chosen, not measured."""

Logits = npt.NDArray[np.float32]
"""[n, K]"""
Labels = npt.NDArray[Any]
"""[n] class indices, or [n, K] of 0 and 1."""
Fit = Callable[[Logits, Labels], Calibration]


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """A calibration, and what it changes on images that it was not fitted on.

    Field names, but for `calibration`, are keys of metrics.json.
    """

    calibration: Calibration
    images: int
    """Eval images that were used."""
    ece_before: float
    """Expected calibration error of the plain logits, 0 to 1."""
    ece_after: float
    loss_before: float
    """Mean of the labels' negative log probability, nats, of the plain logits."""
    loss_after: float
    f1_before: float | None = None
    """Macro F1 at 0.5, of the calibrated probabilities; only with any number of classes."""
    f1_after: float | None = None
    """Macro F1 at thresholds of the other folds."""

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        figures = {item.name: getattr(self, item.name) for item in fields(self)}
        del figures["calibration"]
        return {name: value for name, value in figures.items() if value is not None}


def fit_calibration(
    logits: Logits, label: Labels, min_precision: float | None = None
) -> FittedCalibration | None:
    """The calibration of logits [n, K] in the order of ids; None if there are too few images.

    Labels are [n], or [n, K] of 0 and 1 with any number of classes per image. `min_precision`:
    choose thresholds for this precision instead of the best F1.
    """
    if len(logits) < MIN_IMAGES or not np.isfinite(logits).all():
        return None
    multilabel = label.ndim == 2
    fit = fit_platt if multilabel else fit_temperature
    before = numpy_probabilities(logits, multilabel=multilabel)
    after = _cross_fitted(logits, label, fit)
    losses = _loss(before, label), _loss(after, label)
    errors = _ece(before, label), _ece(after, label)
    calibration = fit(logits, label)
    if losses[1] >= losses[0] or errors[1] > errors[0]:
        calibration, after = PLAIN, before
        losses, errors = (losses[0], losses[0]), (errors[0], errors[0])
    fitted = FittedCalibration(calibration, len(logits), *errors, *losses)
    return _with_thresholds(fitted, after, label, min_precision) if multilabel else fitted


def fit_temperature(logits: Logits, label: Labels) -> Calibration:
    """The temperature of the lowest loss.

    Of n labels each counts as (n + 1) / (n + 2), as Platt's do: if every prediction is right, the
    loss alone would ask for a temperature of 0.
    """
    values, images = logits.astype(np.float64), np.arange(len(label))
    share = (len(label) + 1) / (len(label) + 2)
    others = (values.sum(axis=1) - values[images, label]) / max(1, values.shape[1] - 1)
    target = share * values[images, label] + (1 - share) * others

    def slope(scale: float) -> float:
        """Derivative of the mean loss by the scale, which it grows with: the loss is convex."""
        scaled = Calibration(scale=(scale,))
        expected = (numpy_probabilities(logits, scaled, multilabel=False) * values).sum(axis=1)
        return float((expected - target).mean())

    low, high = (1 / temperature for temperature in reversed(FITTED_TEMPERATURES))
    if slope(low) >= 0:
        return Calibration(scale=(low,))
    if slope(high) <= 0:
        return Calibration(scale=(high,))
    return Calibration(scale=(float(brentq(slope, low, high, xtol=1e-6)),))


def fit_platt(logits: Logits, label: Labels) -> Calibration:
    """Scale and bias of each class with the lowest loss, Platt's targets and the prior."""
    scales, biases = zip(*map(_platt_of_class, logits.T, label.T), strict=True)
    return Calibration(scale=scales, bias=biases)


def _platt_of_class(logits: npt.NDArray[Any], label: npt.NDArray[Any]) -> tuple[float, float]:
    z, positives = logits.astype(np.float64), int(label.sum())
    if min(positives, len(label) - positives) < MIN_POSITIVES:
        return 1.0, 0.0
    present = (positives + 1) / (positives + 2)
    absent = 1 / (len(label) - positives + 2)
    target = np.where(label > 0, present, absent)

    def objective(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        scale, bias = values
        margin = scale * z + bias
        away = values - (1.0, 0.0)
        loss = (np.logaddexp(0, margin) - target * margin).sum() + PRIOR / 2 * (away**2).sum()
        error = np.exp(-np.logaddexp(0, -margin)) - target
        return float(loss), np.array([error @ z, error.sum()]) + PRIOR * away

    low, high = (1 / temperature for temperature in reversed(FITTED_TEMPERATURES))
    best = minimize(
        objective, (1.0, 0.0), jac=True, method="L-BFGS-B",
        bounds=((low, high), (-50.0, 50.0)),
    )  # fmt: skip
    scale, bias = best.x.tolist()
    return scale, bias


def _cross_fitted(logits: Logits, label: Labels, fit: Fit) -> npt.NDArray[np.float64]:
    """Probabilities [n, K] of each fold by a fit on the others."""
    values = np.empty(logits.shape)
    for held_out in _folds(len(logits)):
        calibration = fit(logits[~held_out], label[~held_out])
        values[held_out] = numpy_probabilities(
            logits[held_out], calibration, multilabel=label.ndim == 2
        )
    return values


def _folds(images: int) -> list[npt.NDArray[np.bool_]]:
    """Which images each fold has: every fifth."""
    return [np.arange(images) % FOLDS == fold for fold in range(FOLDS)]


def _loss(probability: npt.NDArray[np.float64], label: Labels) -> float:
    tiny = np.finfo(np.float64).tiny
    if label.ndim == 1:
        return float(-np.log(probability[np.arange(len(label)), label] + tiny).mean())
    of_label = np.where(label > 0, probability, 1 - probability)
    return float(-np.log(of_label + tiny).mean())


def _ece(probability: npt.NDArray[np.float64], label: Labels) -> float:
    """The expected calibration error, as evaluations measure it."""
    counts = ReliabilityCounts()
    if label.ndim == 1:
        counts.add(probability.max(axis=1), probability.argmax(axis=1) == label)
    else:
        counts.add(probability.ravel(), label.ravel())
    return counts.error


def _with_thresholds(
    fitted: FittedCalibration,
    probability: npt.NDArray[np.float64],
    label: Labels,
    min_precision: float | None,
) -> FittedCalibration:
    """Add the thresholds; those of the best F1 if they raise the F1 of images of other folds."""
    predicted = np.empty(label.shape, bool)
    for held_out in _folds(len(label)):
        chosen = best_thresholds(probability[~held_out], label[~held_out], min_precision)
        predicted[held_out] = probability[held_out] >= chosen
    before = _macro_f1(probability >= THRESHOLD, label)
    after = _macro_f1(predicted, label)
    thresholds = best_thresholds(probability, label, min_precision)
    if after <= before and min_precision is None:
        thresholds, after = np.full(label.shape[1], THRESHOLD), before
    classes = label.shape[1]
    calibration = fitted.calibration
    if not calibration.changes_logits:
        calibration = Calibration(scale=(1.0,) * classes, bias=(0.0,) * classes)
    calibration = replace(calibration, thresholds=tuple(thresholds.tolist()))
    return replace(fitted, calibration=calibration, f1_before=before, f1_after=after)


def best_thresholds(
    probability: npt.NDArray[np.float64], label: Labels, min_precision: float | None = None
) -> npt.NDArray[np.float64]:
    """For each class the threshold [K] of the highest F1, between two images' probabilities.

    With `min_precision` the lowest threshold of that precision; 1 if there is none.
    """
    pairs = zip(probability.T, label.T, strict=True)
    return np.array([_threshold(values, labels, min_precision) for values, labels in pairs])


def _threshold(
    probability: npt.NDArray[np.float64], label: npt.NDArray[Any], min_precision: float | None
) -> float:
    positives = int(label.sum())
    if positives < MIN_POSITIVES:
        return THRESHOLD
    order = np.argsort(-probability, kind="stable")
    ordered, hits = probability[order], np.cumsum(label[order])
    predicted = np.arange(1, len(order) + 1)
    following = np.append(ordered[1:], -1.0)
    possible = ordered > following  # no threshold lies between equal ones
    if min_precision is None:
        last = int(np.where(possible, 2 * hits / (predicted + positives), -1.0).argmax())
    else:
        precise = np.flatnonzero(possible & (hits / predicted >= min_precision))
        if not len(precise):
            return 1.0
        last = int(precise[-1])
    return max(0.0, float((ordered[last] + following[last]) / 2))


def _macro_f1(predicted: npt.NDArray[np.bool_], label: Labels) -> float:
    """Mean F1 of the classes that have images."""
    present = label.sum(axis=0) > 0
    hits = (predicted & (label > 0)).sum(axis=0)
    f1 = 2 * hits / np.maximum(1, predicted.sum(axis=0) + label.sum(axis=0))
    return float(f1[present].mean()) if present.any() else 0.0
