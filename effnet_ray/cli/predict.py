"""`jobs/predict.py`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import tyro

from effnet_ray import storage
from effnet_ray.cli.release_flags import ReleaseFlags, defaults
from effnet_ray.cli.terminal import Terminal
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.predict import PredictResult, predict
from effnet_ray.preflight.permissions import writable


@dataclass(frozen=True, kw_only=True)
class Predict(ReleaseFlags):
    """Say of every image what it shows, and write Parquet; the same command goes on where it was
    stopped."""

    source: str
    """URI of the images: a folder of pictures, of any depth, one picture, a packed data set, or
    Parquet with an `image` column."""
    out: str
    """URI of the folder to write: part-00000.parquet, …"""
    wanted: tyro.conf.OmitArgPrefixes[PredictOptions] = field(default_factory=PredictOptions)


def predict_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/predict.py`."""
    asked = defaults(Predict, source=tyro.MISSING, out=tyro.MISSING)
    flags = tyro.cli(Predict, args=argv, default=asked)
    with Terminal() as people:
        predicted = _predicted(flags, people)
        _summary(people, flags, predicted)
    return asdict(predicted)


def _predicted(flags: Predict, people: Terminal) -> PredictResult:
    """What came of it; people see how it comes about."""
    placement = flags.workers.placement
    writable(storage.absolute(flags.out), "predictions")
    return predict(
        flags.open(),
        flags.source,
        flags.out,
        placement,
        flags.wanted,
        on_progress=lambda done, images: people.counted("predicting", "predicted", done, images),
        connect=flags.connecting(people),
    )


def _summary(people: Terminal, flags: Predict, predicted: PredictResult) -> None:
    bad = f", {predicted.quarantined:,} could not be read: in _quarantine/"
    people.table(
        f"{predicted.rows:,} of {predicted.images:,} images predicted",
        {
            "rows": f"{predicted.rows:,}{bad if predicted.quarantined else ''}",
            "out": predicted.out,
            "read": f'pandas.read_parquet("{predicted.out}")',
        },
    )
