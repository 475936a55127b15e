"""`predict`: classify images with a release."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from effnet_ray.cli.parsing import parse
from effnet_ray.cli.release_flags import ReleaseFlags, defaults
from effnet_ray.cli.terminal import Terminal
from effnet_ray.inference.options import PredictOptions

if TYPE_CHECKING:
    from effnet_ray.inference.predict import PredictResult


@dataclass(frozen=True, kw_only=True)
class Predict(ReleaseFlags):
    """Predict the classes of images with a release, and write them as Parquet.

    Run the same command again to continue an interrupted prediction.
    """

    source: str
    """URI of the images: a folder (searched recursively), one image, a packed data set, or
    Parquet with an `image` column."""
    out: str
    """URI of the folder to write: part-00000.parquet, …"""
    options: Annotated[
        tyro.conf.OmitArgPrefixes[PredictOptions], tyro.conf.arg(name="Prediction")
    ] = field(default_factory=PredictOptions)


def predict_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `predict`."""
    flags = parse(Predict, argv, defaults(Predict, source=tyro.MISSING, out=tyro.MISSING))
    with Terminal() as terminal:
        result = _predict(flags, terminal)
        _print_summary(terminal, result)
    return asdict(result)


def _predict(flags: Predict, terminal: Terminal) -> "PredictResult":
    """The result of the prediction; the terminal shows its progress."""
    from effnet_ray import storage
    from effnet_ray.inference.predict import predict
    from effnet_ray.preflight.permissions import check_writable

    check_writable(storage.absolute(flags.out), "predictions")
    return predict(
        flags.load(),
        flags.source,
        flags.out,
        flags.placement,
        flags.options,
        on_progress=terminal.image_progress("predicting", "predicted"),
        connect=flags.connector(terminal),
    )


def _print_summary(terminal: Terminal, result: "PredictResult") -> None:
    unreadable = f", {result.quarantined:,} unreadable images listed in _quarantine/"
    terminal.print_summary(
        f"{result.rows:,} of {result.images:,} images predicted",
        {
            "rows": f"{result.rows:,}{unreadable if result.quarantined else ''}",
            "out": result.out,
            "read": f'pandas.read_parquet("{result.out}")',
        },
    )
