"""The table at the end of an evaluation: the weakest classes, what is confused, the figures."""

from rich.markup import escape
from rich.table import Table

from effnet_ray.console.people import NAMED_AT_ONCE, People
from effnet_ray.use.evaluate import Evaluation

CLASSES_SHOWN = 10
"""Classes in the table; the report has all."""


def show(people: People, found: Evaluation, report: str) -> None:
    """Print it. `report` is the page's URI, or empty."""
    for image, (path, why) in list(found.figures.bad.items())[:NAMED_AT_ONCE]:
        people.say(f"quarantined image {image}: {path}: {why}")
    people.console.print(_classes(found))
    title = f"{found.release.reference} on {found.split}: top-1 {found.figures.top1:.2%}"
    facts = _facts(found) | ({"report": report} if report else {})
    people.table(title, {name: fact for name, fact in facts.items() if fact})


def _classes(found: Evaluation) -> Table:
    names = found.release.classes
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class", overflow="fold")
    for title in ("F1", "precision", "recall", "images"):
        table.add_column(title, justify="right")
    present = [one for one in found.figures.per_class if one.support or one.predicted]
    weakest = sorted(present, key=lambda one: (one.f1, -one.support, one.index))
    for one in weakest[:CLASSES_SHOWN]:
        shares = (f"{share:.1%}" for share in (one.f1, one.precision, one.recall))
        table.add_row(escape(names[one.index]), *shares, f"{one.support:,}")
    if len(weakest) > CLASSES_SHOWN:
        table.add_row(f"… {len(weakest) - CLASSES_SHOWN} better ones")
    return table


def _facts(found: Evaluation) -> dict[str, str]:
    figures, names = found.figures, found.release.classes
    confused = ", ".join(f"{names[label]} → {names[taken]} ({images:,})"
                         for label, taken, images in figures.confused[:3])  # fmt: skip
    return {
        "top-5": f"{figures.top5:.2%}",
        "loss": f"{figures.loss:.4f}",
        "mean F1": f"{figures.macro_f1:.2%}",
        "calibration error": f"{figures.ece:.2%} (expected, 15 bins)",
        "images": f"{figures.seen:,}, {len(figures.bad):,} of them unreadable",
        "most confused": confused,
        "suspected labels": f"{figures.suspected:,}" if figures.suspected else "",
        "release": found.release.uri,
        "data": found.data,
    }
