"""`jobs/predict.py`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import tyro

from effnet_ray import storage
from effnet_ray.check.places import writable
from effnet_ray.cli import flags as shared
from effnet_ray.cli.evaluating import Workers
from effnet_ray.console.people import People
from effnet_ray.placement import Placement
from effnet_ray.train import session
from effnet_ray.use.opened import open_release
from effnet_ray.use.predict import Predicted, predict
from effnet_ray.use.said import Wanted


@dataclass(frozen=True)
class Predict:
    """Say of every image what it shows, and write Parquet; the same command goes on where it was
    stopped."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or its folder's URI."""
    source: str
    """URI of the images: a folder of pictures, of any depth, one picture, a packed data set, or
    Parquet with an `image` column."""
    out: str
    """URI of the folder to write: part-00000.parquet, …"""
    store: str = ""
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    wanted: tyro.conf.OmitArgPrefixes[Wanted] = field(default_factory=Wanted)
    workers: tyro.conf.OmitArgPrefixes[Workers] = field(default_factory=Workers)
    local: bool = False
    """On this machine alone, whatever cluster the job was submitted to."""
    verbose: bool = False
    """Show Ray's own logs."""


def predict_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/predict.py`."""
    env = shared.environment()
    where, placement = env["where"], env["placement"]
    workers = Workers(workers=placement.workers, gpus_per_worker=placement.gpus_per_worker)
    usual = Predict(tyro.MISSING, tyro.MISSING, tyro.MISSING, store=where.store, workers=workers)
    flags = tyro.cli(Predict, args=argv, default=usual)
    with People() as people:
        predicted = _predicted(flags, people)
        _summary(people, flags, predicted)
    return asdict(predicted)


def _predicted(flags: Predict, people: People) -> Predicted:
    """What came of it; people see how it comes about."""
    placement = flags.workers.placement
    writable(storage.absolute(flags.out), "predictions")
    release = open_release(flags.model, flags.store)

    def connect(placement: Placement) -> None:
        people.say("Ray: " + session.connect(placement, local=flags.local, verbose=flags.verbose))

    return predict(
        release,
        flags.source,
        flags.out,
        placement,
        flags.wanted,
        tell=lambda done, images: people.counted("predicting", "predicted", done, images),
        connect=connect,
    )


def _summary(people: People, flags: Predict, predicted: Predicted) -> None:
    bad = f", {predicted.quarantined:,} could not be read: in _quarantine/"
    people.table(
        f"{predicted.rows:,} of {predicted.images:,} images predicted",
        {
            "rows": f"{predicted.rows:,}{bad if predicted.quarantined else ''}",
            "out": predicted.out,
            "read": f'pandas.read_parquet("{predicted.out}")',
        },
    )
