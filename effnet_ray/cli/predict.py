"""`predict`: classify images with a release."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from effnet_ray.cli.output_files import refuse_filled_in
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.release_flags import ReleaseFlags, defaults
from effnet_ray.cli.terminal import Terminal
from effnet_ray.inference.options import PredictOptions
from effnet_ray.schema import require

if TYPE_CHECKING:
    from effnet_ray.inference.predict import PredictResult
    from effnet_ray.release.load import LoadedRelease


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
    review: int = 0
    """Also write the N images to label next to OUT/_review.csv: uncertain ones of different
    kinds. Needs image files as source; implies --embeddings."""
    explain: int = 0
    """Also write pictures of the first N images to OUT/_explained: what the network saw, and where
    it speaks for the predicted class (class-activation map)."""


def predict_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `predict`."""
    flags = parse(Predict, argv, defaults(Predict, source=tyro.MISSING, out=tyro.MISSING))
    if flags.review:
        from effnet_ray import storage
        from effnet_ray.inference.review import FILE, check_source, check_top

        require(flags.review > 0, "review", flags.review, "1 or more images, or 0 for none")
        check_top(flags.options.top)
        refuse_filled_in(storage.join(storage.absolute(flags.out), FILE), "label")
        check_source(flags.source)
        flags = replace(flags, options=replace(flags.options, embeddings=True))
    require(flags.explain >= 0, "explain", flags.explain, "1 or more images, or 0 for none")
    with Terminal() as terminal:
        release = flags.load()
        result = _predict(flags, release, terminal)
        _print_summary(terminal, result)
        reviewed = _write_review(flags, release, result.out, terminal) if flags.review else {}
        explained = _write_explained(flags, release, terminal) if flags.explain else {}
    return asdict(result) | reviewed | explained


def _write_explained(
    flags: Predict, release: "LoadedRelease", terminal: Terminal
) -> dict[str, Any]:
    """Write the explaining pictures; returns the fields of the JSON line."""
    from effnet_ray.inference.explain import explain

    uri, count = explain(release, flags.source, flags.out, flags.explain, flags.options.split)
    terminal.print(f"wrote {count:,} pictures of what the network saw to {uri}")
    return {"explained": uri}


def _write_review(
    flags: Predict, release: "LoadedRelease", out: str, terminal: Terminal
) -> dict[str, Any]:
    """Write the images to label next; returns the fields of the JSON line."""
    from effnet_ray.inference.review import write_review
    from effnet_ray.recipe import MULTILABEL

    multilabel = release.recipe.task == MULTILABEL
    uri, count = write_review(out, flags.source, flags.review, multilabel=multilabel)
    terminal.print(f"wrote {count:,} images to label next to {uri}")
    return {"review": uri, "reviewed": count}


def _predict(flags: Predict, release: "LoadedRelease", terminal: Terminal) -> "PredictResult":
    """The result of the prediction; the terminal shows its progress."""
    from effnet_ray import storage
    from effnet_ray.inference.predict import predict
    from effnet_ray.preflight.permissions import check_writable

    check_writable(storage.absolute(flags.out), "predictions")
    return predict(
        release,
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
