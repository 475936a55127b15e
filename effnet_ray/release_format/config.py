"""config.json of a release, in timm's hub format: architecture, class names and preprocessing.

Checked here, since a release may come from anyone; written by `model.pretrained.hub_config` with
timm's own writer. A new setting of inference is written there, checked here, carried by
`release.load.LoadedRelease`, and applied in `inference.scorer.Scorer` (evaluate, predict, serve)
and `inference.export`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray.release_format.calibration import Calibration, parse_calibration
from effnet_ray.release_format.layout import CONFIG
from effnet_ray.variants import CENTER, CROP_MODES, MIN_IMAGE_SIZE, InputSpec

MAX_IMAGE_SIZE = 2048
"""px. B7's own is 600; a larger image takes more than 12 MB."""
MIN_CROP = 0.1
"""Share of the resized image's side. timm's EfficientNets have 0.875 to 1; with less than a tenth,
an image would be resized to more than 100 times the pixels that are used."""
UNKNOWN = "unknown"
"""Key in config.json: an object with the `threshold`."""
MIN_UNKNOWN, MAX_UNKNOWN = -0.01, 4.01
"""Scores are 0 to 4, and a little more by rounding."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Not allowed in class names: control characters, and surrogates, which UTF-8 cannot encode."""
INTERPOLATIONS = ("bicubic", "bilinear")
MALFORMED = (ValueError, LookupError, TypeError, ArithmeticError)
"""What `parse_config` raises."""


@dataclass(frozen=True, slots=True)
class ReleaseConfig:
    """The content of config.json."""

    architecture: str
    """timm's name of the network."""
    spec: InputSpec
    """The preprocessing."""
    num_classes: int
    """The network's outputs."""
    classes: tuple[str, ...] | None
    """Their names; None if there are none, as in checkpoints of the hub."""
    calibration: Calibration
    """How probabilities are made of logits."""
    unknown_from: float | None
    """The score from which a picture is called unknown; None if the release has no references."""


def parse_config(config: Mapping[str, Any]) -> ReleaseConfig:
    """The checked content of a config.json. Raises one of MALFORMED."""
    outputs = config["num_classes"]
    if type(outputs) is not int or outputs < 1:
        raise ValueError(f"num_classes of {CONFIG} is {outputs!r}: expected 1 or more")
    return ReleaseConfig(
        architecture=config["architecture"],
        spec=_input_spec(config["pretrained_cfg"]),
        num_classes=outputs,
        classes=_class_names(config["label_names"], outputs) if "label_names" in config else None,
        calibration=parse_calibration(config, outputs),
        unknown_from=_unknown_from(config[UNKNOWN]) if UNKNOWN in config else None,
    )


def _unknown_from(unknown: Mapping[str, Any]) -> float:
    """The threshold of unknown pictures. Raises ValueError, LookupError or TypeError."""
    threshold = unknown["threshold"]
    if type(threshold) not in (int, float) or not MIN_UNKNOWN <= threshold <= MAX_UNKNOWN:
        raise ValueError(f"the threshold of {UNKNOWN} in {CONFIG} is not from 0 to 4")
    return float(threshold)


def _input_spec(data: Mapping[str, Any]) -> InputSpec:
    """The preprocessing. Raises ValueError if it is not supported."""
    channels, height, width = data["input_size"]
    spec = InputSpec(
        resolution=height,
        crop=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=_per_channel(data["mean"]),
        std=_per_channel(data["std"]),
        crop_mode=data.get("crop_mode", CENTER),
    )
    supported = (
        (channels, width) == (3, height)
        and type(height) is int
        and MIN_IMAGE_SIZE <= height <= MAX_IMAGE_SIZE
        and MIN_CROP <= spec.crop <= 1
        and height / spec.crop <= 2 * MAX_IMAGE_SIZE  # px of the image before it is cropped
        and spec.interpolation in INTERPOLATIONS
        and spec.crop_mode in CROP_MODES
        and all(map(math.isfinite, (*spec.mean, *spec.std)))
        and min(spec.std) > 0
    )
    if not supported:
        raise ValueError(f"{CONFIG} has unsupported preprocessing: {data}")
    return spec


def _per_channel(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _class_names(names: Any, outputs: int) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise ValueError(f"label_names of {CONFIG} is not a list of names")
    if any(not name or UNPRINTABLE.search(name) for name in names):
        raise ValueError(f"label_names of {CONFIG} has a name that is not printable text")
    if len(set(names)) != len(names) or len(names) != outputs or len(names) < 2:
        raise ValueError(
            f"label_names of {CONFIG} has {len(names)} names ({len(set(names))} distinct), "
            f"expected {outputs} distinct names, at least 2"
        )
    return tuple(names)
