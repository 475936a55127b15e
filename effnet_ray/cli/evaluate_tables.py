"""The table at the end of an evaluation: the weakest classes, what is confused, the figures."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from effnet_ray.cli.terminal import NAMED_AT_ONCE, Terminal
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.train.class_metrics import ClassMetrics

CLASSES_SHOWN = 10
"""Classes in the table; the report has all."""


def print_evaluation(people: Terminal, found: Evaluation, report: str) -> None:
    """Print it. `report` is the page's URI, or empty."""
    for image, (path, why) in list(found.metrics.unreadable.items())[:NAMED_AT_ONCE]:
        people.say(f"quarantined image {image}: {path}: {why}")
    people.console.print(_classes(found))
    headline, *scores = _scores(found.metrics).items()
    title = f"{found.release.reference} on {found.split}: {' '.join(headline)}"
    facts = dict(scores) | _facts(found) | ({"report": report} if report else {})
    people.table(title, {name: fact for name, fact in facts.items() if fact})


def _classes(found: Evaluation) -> Table:
    names, weakest = found.release.classes, found.metrics.worst_classes
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class", overflow="fold")
    ranked = isinstance(found.metrics, MultilabelMetrics)
    for title in (*(["AP"] if ranked else []), "F1", "precision", "recall", "images"):
        table.add_column(title, justify="right")
    for one in weakest[:CLASSES_SHOWN]:
        table.add_row(escape(names[one.index]), *_shares(one, ranked=ranked), f"{one.support:,}")
    if len(weakest) > CLASSES_SHOWN:
        table.add_row(f"… {len(weakest) - CLASSES_SHOWN} better ones")
    return table


def _shares(one: ClassMetrics, *, ranked: bool) -> list[str]:
    shares = [f"{share:.1%}" for share in (one.f1, one.precision, one.recall)]
    return ["" if one.ap is None else f"{one.ap:.1%}", *shares] if ranked else shares


def _scores(figures: MulticlassMetrics | MultilabelMetrics) -> dict[str, str]:
    """What the release is judged by, first of all."""
    first = {"top-1": figures.top1, "top-5": figures.top5}
    if isinstance(figures, MultilabelMetrics):
        first = {"mAP": figures.mean_ap} | first | {"F1 of all": figures.micro_f1}
    return {name: f"{share:.2%}" for name, share in first.items()}


def _facts(found: Evaluation) -> dict[str, str]:
    figures = found.metrics
    return {
        "loss": f"{figures.loss:.4f}",
        "mean F1": f"{figures.macro_f1:.2%}",
        "calibration error": f"{figures.ece:.2%} (expected, 15 bins)",
        "images": f"{figures.processed:,}, {len(figures.unreadable):,} of them unreadable",
        "most confused": _confused(figures, found.release.classes),
        "suspected labels": f"{figures.label_error_count:,}" if figures.label_error_count else "",
        "release": found.release.uri,
        "data": found.data,
    }


def _confused(figures: MulticlassMetrics | MultilabelMetrics, names: Sequence[str]) -> str:
    """The pairs most often taken for each other, where an image has one class."""
    pairs = figures.confused_pairs[:3] if isinstance(figures, MulticlassMetrics) else []
    return ", ".join(f"{names[label]} → {names[taken]} ({images:,})"
                     for label, taken, images in pairs)  # fmt: skip
