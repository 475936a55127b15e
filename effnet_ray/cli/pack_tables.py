"""The table at the end of packing: classes, splits, sizes, and what deserves a look."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from effnet_ray.cli.terminal import Terminal
from effnet_ray.data.manifest import Manifest
from effnet_ray.packing.report import Report

CLASSES_SHOWN = 20
"""Classes in the table; report.json has all."""


def data_set_table(people: Terminal, manifest: Manifest, told: Report, data: str) -> None:
    """Print it. `data` is the URI of the data set."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class", overflow="fold")
    for split in told.images:
        table.add_column(f"{split} images", justify="right")
        table.add_column("MB", justify="right")
    for title, row in _class_rows(manifest.classes, told):
        table.add_row(title, *row)
    people.console.print(table)
    people.table(f"{len(manifest.classes)} classes", _facts(told, data))


def _class_rows(classes: Sequence[str], told: Report) -> Iterator[tuple[str, list[str]]]:
    """(title, images and MB per split) of the smallest and largest classes, and of all."""

    def row(chosen: Sequence[int]) -> list[str]:
        cells = []
        for split, images in told.images.items():
            size = sum(told.bytes[split][i] for i in chosen) / 1e6
            cells += [f"{sum(images[i] for i in chosen):,}", f"{size:,.1f}"]
        return cells

    by_size = sorted(range(len(classes)), key=lambda i: -told.images["train"][i])
    for place, index in enumerate(by_size):
        if place < CLASSES_SHOWN // 2 or place >= len(by_size) - CLASSES_SHOWN // 2:
            yield classes[index], row([index])
        elif place == CLASSES_SHOWN // 2:
            between = by_size[CLASSES_SHOWN // 2 : len(by_size) - CLASSES_SHOWN // 2]
            yield f"… {len(between)} classes between", row(between)
    yield "all", row(by_size)


def _facts(told: Report, data: str) -> dict[str, str]:
    """What stands below the table of classes; what did not occur is not told."""
    few = told.tiny
    reasons = ", ".join(f"{count:,} × {why}" for why, count in list(told.quarantined.items())[:3])
    facts = {
        "width": "{0:,} to {2:,} px, median {1:,}".format(*told.width),
        "height": "{0:,} to {2:,} px, median {1:,}".format(*told.height),
        "quarantined": f"{sum(told.quarantined.values()):,} ({reasons}), in quarantine.parquet",
        "equal": f"{told.duplicates:,} images have an equal one; {told.moved:,} moved to its "
        "split; in duplicates.parquet",
        "nearly equal": f"{told.near_duplicates:,} pairs across splits, in duplicates.parquet",
        "contradictions": f"{told.contradictions:,} pairs of equal images with different labels",
        "tiny classes": ", ".join(f"{name} ({count})" for name, count in few.items()),
        "data": data,
        "next": f"python jobs/finetune.py --data {data} --variant b0",
    }
    absent = {
        "quarantined": not told.quarantined,
        "equal": not told.duplicates,
        "nearly equal": not told.near_duplicates,
        "contradictions": not told.contradictions,
        "tiny classes": not few,
    }
    return {name: value for name, value in facts.items() if not absent.get(name)}
