"""What calibrating a release changes for images that it has never seen.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/calibration.py --real ~/effnet-real --out ~/effnet-calibration

EfficientNet-Lite0's ImageNet weights, default recipe, one release per set, calibrated on its eval
images as every release is. The images measured are neither train nor eval images. Prints the
expected calibration error and the loss of the plain and of the calibrated probabilities, and what
the release said of its own error.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from unknown import Options, classes_of, outputs, sampled, trained

from effnet_ray.inference.logits import PLAIN, numpy_probabilities
from effnet_ray.inference.metric_sums import ReliabilityCounts
from effnet_ray.release_format.calibration import Calibration

SETS = ("digits", "emoji", "fashion")


@dataclass(frozen=True)
class CalibrationOptions(Options):
    """What to train on, and what to measure."""

    measured: int = 300
    """Most images per class that are measured."""


def unseen(options: CalibrationOptions, name: str) -> list[Path]:
    """Images of a set that its release has not seen, up to `measured` of each class."""
    classes, files = classes_of(options, name), list[Path]()
    used = {*sampled(options, name, "train", classes), *sampled(options, name, "val", classes)}
    for label in classes:
        every = [
            file
            for split in ("val", "train")
            for file in sorted((options.real / name / split / label).iterdir())
            if file not in used
        ]
        files += every[: options.measured]
    return files


def errors(logits: np.ndarray, label: np.ndarray, calibration: Calibration) -> tuple[float, float]:
    """Expected calibration error and mean loss, nats."""
    probability = numpy_probabilities(logits, calibration, multilabel=False)
    counts = ReliabilityCounts()
    counts.add(probability.max(axis=1), probability.argmax(axis=1) == label)
    loss = -np.log(probability[np.arange(len(label)), label]).mean()
    return counts.error, float(loss)


def main(options: CalibrationOptions) -> None:
    """Print a row per set."""
    columns = ("set", "images", "top-1", "temperature", "ECE plain", "ECE calibrated",
               "ECE as released", "loss plain", "loss calibrated")  # fmt: skip
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    found = {}
    for name in SETS:
        release = trained(options, name, classes_of(options, name), name)
        files = unseen(options, name)
        seen = outputs(release, files)
        top1 = float((seen.logits.argmax(axis=1) == seen.label).mean())
        plain = errors(seen.logits, seen.label, PLAIN)
        calibrated = errors(seen.logits, seen.label, release.calibration)
        metrics = json.loads((Path(release.uri) / "metrics.json").read_text())["calibration"]
        temperature = release.calibration.temperature
        row = (top1, temperature, plain[0], calibrated[0], metrics["ece_after"], plain[1],
               calibrated[1])  # fmt: skip
        print(f"| {name} | {len(files)} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
        found[name] = {"images": len(files), "row": row, "released": metrics}
    print(json.dumps({"sets": found, "torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(CalibrationOptions, description=__doc__))
