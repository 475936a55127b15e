"""What a packed data set has, on the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import EffnetRayError
from effnet_ray.recipe import Recipe

if TYPE_CHECKING:
    from effnet_ray.data.manifest import Manifest
    from effnet_ray.packing.report import Report

MAX_CLASS_ROWS = 20
"""Classes in the table, half of them the largest and half the smallest; report.json has all."""
MAX_NAMES = 3
"""Names of files and folders in a line; report.json has all."""


def print_data_set(
    terminal: Terminal,
    manifest: "Manifest",
    report: "Report",
    data: str,
    *,
    page: str = "",
    next_command: str = "",
) -> None:
    """Print images and bytes by class, what deserves attention, and what to run next."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class", overflow="fold")
    for split in report.images:
        table.add_column(f"{split} images", justify="right")
        table.add_column("MB", justify="right")
    for title, cells in _class_rows(manifest.classes, report):
        table.add_row(title, *cells)
    terminal.console.print(table)
    facts = _facts(report, data) | {"page": page, "next": next_command}
    facts = {name: text for name, text in facts.items() if text}
    terminal.print_summary(f"{len(manifest.classes)} classes", facts)


def ensure_page(data: str, terminal: Terminal) -> str:
    """URI of the data set's page, with the view of a B0; empty if it cannot have one.

    A page that cannot be written stops no job.
    """
    from effnet_ray.reporting import data_page

    try:
        return data_page.ensure_page(data, Recipe().variant_spec.input_spec("best"))
    except EffnetRayError as error:
        terminal.print(f"no page of the data set: {error}")
        return ""


def _class_rows(classes: Sequence[str], report: "Report") -> Iterator[tuple[str, list[str]]]:
    """Title and cells of the largest and smallest classes, and of all classes."""
    by_size = sorted(range(len(classes)), key=lambda i: -report.images["train"][i])
    half = MAX_CLASS_ROWS // 2
    for rank, index in enumerate(by_size):
        if rank < half or rank >= len(by_size) - half:
            yield classes[index], _cells(report, [index])
        elif rank == half:
            between = by_size[half : len(by_size) - half]
            yield f"… {len(between)} more classes", _cells(report, between)
    yield "all", _cells(report, by_size)


def _cells(report: "Report", classes: Sequence[int]) -> list[str]:
    """Images and MB of these classes together, for each split."""
    cells = []
    for split, images in report.images.items():
        size = sum(report.bytes[split][i] for i in classes) / 1e6
        cells += [f"{sum(images[i] for i in classes):,}", f"{size:,.1f}"]
    return cells


def _facts(report: "Report", data: str) -> dict[str, str]:
    """The lines below the table, without those about what did not occur."""
    quarantined = sum(report.quarantined.values())
    reasons = ", ".join(f"{count:,} × {text}" for text, count in _top(report.quarantined))
    facts = {
        "width": "{0:,} to {2:,} px, median {1:,}".format(*report.width),
        "height": "{0:,} to {2:,} px, median {1:,}".format(*report.height),
        "quarantined": quarantined and f"{quarantined:,} ({reasons}), see quarantine.parquet",
        "set aside": _set_aside(report),
        "without images": _some(report.without_images),
        "more than 8 bits": "; ".join(
            f"{count:,} × {values}" for values, count in _top(report.value_ranges)
        ),
        "duplicates": report.duplicates
        and f"{report.duplicates:,} images are identical to another one; {report.moved:,} of them "
        "were moved to its split; see duplicates.parquet",
        "near duplicates": report.near_duplicates
        and f"{report.near_duplicates:,} pairs in different splits, see duplicates.parquet",
        "label conflicts": report.contradictions
        and f"{report.contradictions:,} pairs of identical images with different labels",
        "small classes": ", ".join(f"{name} ({count})" for name, count in report.tiny.items()),
        "data": data,
    }
    return {name: text for name, text in facts.items() if isinstance(text, str) and text}


def _set_aside(report: "Report") -> str:
    """How many entries of the source are not images, why, and the first; empty for none."""
    if not report.set_aside:
        return ""
    counts = Counter(entry.reason for entry in report.set_aside)
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in counts.most_common(3))
    paths = _some([entry.path for entry in report.set_aside])
    return f"{len(report.set_aside):,} ({reasons}), see report.json: {paths}"


def _some(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")


def _top(counts: dict[str, int]) -> list[tuple[str, int]]:
    return list(counts.items())[:3]
