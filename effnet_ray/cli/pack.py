"""`jobs/pack.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tyro

from effnet_ray import storage
from effnet_ray.cli.pack_tables import data_set_table
from effnet_ray.cli.terminal import Terminal
from effnet_ray.data import manifest as manifests
from effnet_ray.packing import ray_map, report
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.packing.sources import Map
from effnet_ray.placement import Placement
from effnet_ray.runtime import session


@dataclass(frozen=True)
class Pack:
    """Pack labelled images into Parquet shards and a manifest.

    The source is a folder of class folders (also below train/, val/ and test/), a CSV, TSV or
    Parquet table of paths and labels, Parquet in Hugging Face's image layout, or WebDataset tars.
    Packing again continues what was interrupted.
    """

    source: str
    """URI of the folder or table."""
    out: str
    """URI of the data set to write."""
    packing: tyro.conf.OmitArgPrefixes[Packing] = field(default_factory=Packing)
    verbose: bool = False
    """Show Ray's own logs."""


def pack_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/pack.py`."""
    flags = tyro.cli(Pack, args=argv)
    out = storage.absolute(flags.out)
    with Terminal() as people:
        each = _each([storage.absolute(flags.source), out], people, verbose=flags.verbose)
        manifest = pack(flags.source, out, flags.packing, progress=people.packed, each=each)
        if flags.packing.in_place:
            people.say(f"{storage.join(out, manifests.NAME)} written, the shards left as they are")
        else:
            data_set_table(people, manifest, report.load(out), out)
    return {
        "manifest": storage.join(out, manifests.NAME),
        "fingerprint": manifest.fingerprint,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "quarantined": manifest.quarantined,
    }


def _each(uris: Sequence[str], people: Terminal, *, verbose: bool) -> Map:
    """All over the cluster that the job was submitted to; else here, where threads are enough."""
    if not session.is_submitted_job():
        return map
    people.say("Ray: " + session.connect(Placement(), local=False, verbose=verbose))
    session.check_reachable(uris)
    return ray_map.ray_map
