"""`pack`: turn labelled images into a packed data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from effnet_ray.cli.data_set import packing_map
from effnet_ray.cli.flags import connector
from effnet_ray.cli.pack_view import ensure_page, print_data_set
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import DatasetError
from effnet_ray.packing.options import Packing

MAX_CLASS_ROWS = 20
"""Classes in the table, half of them the largest and half the smallest; report.json has all."""

MAX_NAMES = 3
"""Names of files and folders in a line; report.json has all."""

if TYPE_CHECKING:
    from effnet_ray.data.manifest import Manifest


@dataclass(frozen=True)
class Pack:
    """Pack labelled images into Parquet shards and a manifest.

    The source is a folder of class folders (also below train/, val/ and test/), a CSV, TSV or
    Parquet table of paths and labels, Parquet in Hugging Face's image layout, WebDataset tars, or
    a data set of the Hugging Face hub (hf://datasets/OWNER/NAME).
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
    from effnet_ray.packing.pack import pack

    out = storage.absolute(flags.out)
    if storage.local_entry(out):
        raise DatasetError(f"--out {out} is a file: choose a folder")
    manifest_uri = storage.join(out, manifests.NAME)
    with Terminal() as terminal:
        connect = connector(terminal, local=False, verbose=flags.verbose)
        map_function = packing_map(flags.source, out, connect)
        manifest = pack(
            flags.source,
            out,
            flags.packing,
            on_progress=terminal.packing_progress,
            map_function=map_function,
        )
        accounted = _report(terminal, manifest, out, in_place=flags.packing.in_place)
    return {
        "manifest": manifest_uri,
        "fingerprint": manifest.fingerprint,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "quarantined": manifest.quarantined,
        **accounted,
    }


def _report(
    terminal: Terminal, manifest: "Manifest", out: str, *, in_place: bool
) -> dict[str, Any]:
    """Print what was packed; returns how every entry of the source is accounted for."""
    from effnet_ray import storage
    from effnet_ray.packing import report

    counted = sum(manifest.images.values()) + manifest.quarantined
    if in_place:
        terminal.print(f"wrote a manifest to {out}; the shards are unchanged")
        return {"seen": counted, "set_aside": 0, "report": None}
    built, page = report.load(out), ensure_page(out, terminal)
    command = f"effnet-ray finetune --data {out} --variant b0"
    print_data_set(terminal, manifest, built, out, page=page, next_command=command)
    return {
        "seen": built.seen or counted,  # 0: a report of an earlier version
        "set_aside": len(built.set_aside),
        "report": storage.join(out, report.NAME),
        "page": page or None,
    }
