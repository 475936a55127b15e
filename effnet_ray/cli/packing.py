"""`jobs/pack.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tyro

from effnet_ray import storage
from effnet_ray.console.packing import data_set
from effnet_ray.console.people import People
from effnet_ray.data import manifest as manifests, report, spread
from effnet_ray.data.pack import Packing, pack
from effnet_ray.data.sources import Each
from effnet_ray.placement import Placement
from effnet_ray.train import session


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
    with People() as people:
        each = _each([storage.absolute(flags.source), out], people, verbose=flags.verbose)
        manifest = pack(flags.source, out, flags.packing, progress=people.packed, each=each)
        if flags.packing.in_place:
            people.say(f"{storage.join(out, manifests.NAME)} written, the shards left as they are")
        else:
            data_set(people, manifest, report.load(out), out)
    return {
        "manifest": storage.join(out, manifests.NAME),
        "fingerprint": manifest.fingerprint,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "quarantined": manifest.quarantined,
    }


def _each(uris: Sequence[str], people: People, *, verbose: bool) -> Each:
    """All over the cluster that the job was submitted to; else here, where threads are enough."""
    if not session.submitted():
        return map
    people.say("Ray: " + session.connect(Placement(), local=False, verbose=verbose))
    session.check_reach(uris)
    return spread.each
