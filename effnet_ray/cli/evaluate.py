"""`jobs/evaluate.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from effnet_ray import storage
from effnet_ray.cli import flags as shared
from effnet_ray.cli.evaluate_tables import print_evaluation
from effnet_ray.cli.release_flags import ReleaseFlags, defaults
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import RecipeError
from effnet_ray.inference import report as reports
from effnet_ray.inference.evaluate import Evaluation, evaluate
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.preflight.permissions import writable


@dataclass(frozen=True, kw_only=True)
class Evaluate(ReleaseFlags):
    """Judge a release by every image of a split, once each, and look at its mistakes."""

    data: str = ""
    """The packed data set. Default: EFFNET_DATA, else the built-in sample data."""
    split: Literal["eval", "test", "train"] = "eval"
    """Which images of it."""
    report: str = ""
    """FILE.html: write one self-contained page with curves, confusion, calibration and mistakes
    there; a path or an s3:// URI."""
    examples: int = 24
    """How many mistakes, and how many suspected label errors, the page shows."""


def evaluate_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/evaluate.py`."""
    data = shared.environment()["where"].data
    flags = tyro.cli(Evaluate, args=argv, default=defaults(Evaluate, data=data))
    if flags.examples < 0:
        raise RecipeError(f"examples is {flags.examples}: expected 0 or more")
    page = _page(flags.report)
    with Terminal() as people:
        found = _found(flags, people)
        if page:
            storage.write_bytes(page, reports.html(found))
        print_evaluation(people, found, page)
    figures = found.metrics
    return {
        "model": found.release.reference,
        "split": found.split,
        "eval_top1": figures.top1,
        "eval_top5": figures.top5,
        "eval_loss": figures.loss,
        "images": figures.processed,
        "quarantined": len(figures.unreadable),
        "f1": figures.macro_f1,
        "ece": figures.ece,
        "suspected_labels": figures.label_error_count,
        **_of_several(figures),
        **({"report": page} if page else {}),
    }


def _of_several(figures: MulticlassMetrics | MultilabelMetrics) -> dict[str, float]:
    """What is told besides where images may have several classes."""
    if isinstance(figures, MultilabelMetrics):
        return {"eval_map": figures.mean_ap, "micro_f1": figures.micro_f1}
    return {}


def _page(report: str) -> str:
    """Where the page is to be. Raises InputError where it could not be written in the end."""
    if not report:
        return ""
    if not report.endswith(".html"):
        raise RecipeError(f"report is {report!r}: expected the name of a file, as in out.html")
    page = storage.absolute(report)
    nowhere = storage.is_remote(page) and page.count("/") < 3  # s3://FILE.html has no bucket
    if nowhere or Path(page).is_dir():
        raise RecipeError(f"report is {report!r}: expected a file, in a folder or a bucket")
    writable(page.rpartition("/")[0] or "/", "the report")
    return page


def _found(flags: Evaluate, people: Terminal) -> Evaluation:
    """The evaluation; people see how it comes about."""
    placement = flags.workers.placement
    return evaluate(
        flags.open(),
        flags.data or shared.sample(people),
        placement,
        split=flags.split,
        examples=flags.examples,
        thumbnails=bool(flags.report),
        on_progress=lambda done, images: people.counted("evaluating", "evaluated", done, images),
        connect=flags.connecting(people),
    )
