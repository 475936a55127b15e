"""`pack`: turn labelled images into a packed data set."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from effnet_ray.cli.parsing import parse
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import DatasetError
from effnet_ray.packing.options import Packing
from effnet_ray.placement import Placement

if TYPE_CHECKING:
    from effnet_ray.data.manifest import Manifest
    from effnet_ray.packing.listing import Map
    from effnet_ray.packing.report import Report

MAX_CLASS_ROWS = 20
"""Classes in the table, half of them the largest and half the smallest; report.json has all."""

MAX_NAMES = 3
"""Names of files and folders in a line; report.json has all."""


@dataclass(frozen=True)
class Pack:
    """Pack labelled images into Parquet shards and a manifest.

    The source is a folder of class folders (also below train/, val/ and test/), a CSV, TSV or
    Parquet table of paths and labels, Parquet in Hugging Face's image layout, or WebDataset tars.
    Run the same command again to continue an interrupted packing.
    """

    source: str
    """URI of the source folder or table."""
    out: str
    """URI of the data set to write."""
    packing: Annotated[tyro.conf.OmitArgPrefixes[Packing], tyro.conf.arg(name="Packing")] = field(
        default_factory=Packing
    )
    verbose: bool = False
    """Show Ray's own logs."""


def pack_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `pack`."""
    flags = parse(Pack, argv)
    from effnet_ray import storage
    from effnet_ray.data import manifest as manifests
    from effnet_ray.packing import report
    from effnet_ray.packing.pack import pack

    out = storage.absolute(flags.out)
    if Path(out).is_file():
        raise DatasetError(f"--out {out} is a file: choose a folder")
    manifest_uri = storage.join(out, manifests.NAME)
    with Terminal() as terminal:
        map_function = _map_function(
            [storage.absolute(flags.source), out], terminal, verbose=flags.verbose
        )
        manifest = pack(
            flags.source,
            out,
            flags.packing,
            on_progress=terminal.packing_progress,
            map_function=map_function,
        )
        counted = sum(manifest.images.values()) + manifest.quarantined
        if flags.packing.in_place:
            terminal.print(f"wrote {manifest_uri}; the shards are unchanged")
            accounted: dict[str, Any] = {"seen": counted, "set_aside": 0, "report": None}
        else:
            built = report.load(out)
            _print_data_set(terminal, manifest, built, out)
            accounted = {
                "seen": built.seen or counted,  # 0: a report of an earlier version
                "set_aside": len(built.set_aside),
                "report": storage.join(out, report.NAME),
            }
    return {
        "manifest": manifest_uri,
        "fingerprint": manifest.fingerprint,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "quarantined": manifest.quarantined,
        **accounted,
    }


def _map_function(uris: Sequence[str], terminal: Terminal, *, verbose: bool) -> "Map":
    """Ray's map on the cluster that the job was submitted to; else the built-in one.

    Without a cluster, threads are enough.
    """
    from effnet_ray.runtime import session, shared_folders

    if not session.is_submitted_job():
        return map
    from effnet_ray.packing.ray_map import ray_map

    terminal.print("Ray: " + session.connect(Placement(), local=False, verbose=verbose))
    shared_folders.check_reachable(uris)
    return ray_map


def _print_data_set(terminal: Terminal, manifest: "Manifest", report: "Report", data: str) -> None:
    """Print images and bytes by class, and what deserves attention."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class", overflow="fold")
    for split in report.images:
        table.add_column(f"{split} images", justify="right")
        table.add_column("MB", justify="right")
    for title, cells in _class_rows(manifest.classes, report):
        table.add_row(title, *cells)
    terminal.console.print(table)
    terminal.print_summary(f"{len(manifest.classes)} classes", _facts(report, data))


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
            f"{n:,} × {range}" for range, n in _top(report.value_ranges)
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
        "next": f"effnet-ray finetune --data {data} --variant b0",
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
