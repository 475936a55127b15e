"""How probabilities are made of a release's logits, as config.json holds it.

    "calibration": {"temperature": 1.31}                    one class per image
    "calibration": {"scale": […], "bias": […],              any number of classes per image:
                    "thresholds": […]}                      one value for each class

The values are fitted when a run is released (`publish.calibrate`) and applied in
`inference.logits`. A release without them has the probabilities of its plain logits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from effnet_ray.release_format.layout import CONFIG

CALIBRATION = "calibration"
"""Key in config.json."""
THRESHOLD = 0.5
"""Probability at which a class is predicted, where a release has no threshold for it."""
TEMPERATURES = 0.01, 100.0
"""The allowed temperatures, and the reciprocals of the allowed scales."""
MAX_BIAS = 100.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """The probabilities are those of `scale * logits + bias`."""

    scale: tuple[float, ...] = (1.0,)
    """One value for all classes, 1 / temperature, or one for each class; above 0."""
    bias: tuple[float, ...] = (0.0,)
    """One value for all classes, or one for each."""
    thresholds: tuple[float, ...] = ()
    """For each class the probability at which it is predicted; empty: `THRESHOLD` for all. Only
    with any number of classes per image."""

    @classmethod
    def of_temperature(cls, temperature: float) -> Self:
        """Of logits that are divided by a temperature."""
        return cls(scale=(1 / temperature,))

    @property
    def temperature(self) -> float:
        """The number by which all logits are divided. Only of one scale for all classes."""
        (scale,) = self.scale
        return 1 / scale

    @property
    def changes_logits(self) -> bool:
        """Whether the probabilities differ from those of the plain logits."""
        return any(value != 1 for value in self.scale) or any(self.bias)

    def of_class(self, index: int) -> Self:
        """The calibration of one class, for its column of logits."""
        return type(self)(
            *(
                (values[index],) if len(values) > 1 else values
                for values in (self.scale, self.bias, self.thresholds)
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Its form in config.json."""
        if len(self.scale) == 1:
            return {"temperature": self.temperature}
        return {
            "scale": list(self.scale),
            "bias": list(self.bias),
            "thresholds": list(self.thresholds),
        }


def parse_calibration(config: Mapping[str, Any], classes: int) -> Calibration:
    """The checked calibration of a config.json. Raises ValueError, LookupError or TypeError."""
    if CALIBRATION not in config:
        return Calibration()
    values = config[CALIBRATION]
    low, high = TEMPERATURES
    if "temperature" in values:
        (temperature,) = _numbers([values["temperature"]], 1, low, high)
        return Calibration.of_temperature(temperature)
    return Calibration(
        scale=_numbers(values["scale"], classes, 1 / high, 1 / low),
        bias=_numbers(values["bias"], classes, -MAX_BIAS, MAX_BIAS),
        thresholds=_numbers(values["thresholds"], classes, 0.0, 1.0),
    )


def _numbers(values: Sequence[Any], count: int, low: float, high: float) -> tuple[float, ...]:
    """The values as floats. Raises ValueError unless all are numbers of this range."""
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if not numbers or len(values) != count or not all(low <= v <= high for v in values):
        raise ValueError(
            f"{CALIBRATION} of {CONFIG} has {len(values)} values, expected {count} numbers from "
            f"{low:g} to {high:g}"
        )
    return tuple(map(float, values))
