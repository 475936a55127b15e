"""`data`: look at a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tyro

from effnet_ray.cli.data_set import find_data
from effnet_ray.cli.flags import connector, default_runs
from effnet_ray.cli.output_files import output_uri
from effnet_ray.cli.pack_view import print_data_set
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.terminal import Terminal
from effnet_ray.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Data:
    """Show what is in a data set, as tables and as a page with pictures.

    The page has the classes, sizes, shapes, duplicates and label conflicts, what was quarantined
    and set aside, and what a network would see of the images.
    """

    data: tyro.conf.Positional[str]
    """URI of the data set, or of images that `pack` takes as --source."""
    page: str = ""
    """FILE.html, a path or an s3:// URI. Default: report.html in the data set."""
    variant: str = "b0"
    """The network whose view of the images is shown."""
    image_size: int | None = None
    """Height and width of the network's input, px. Default: that of its best weights."""
    runs: str = ""
    """Where images are packed, below packed/, as by `finetune`. Default: EFFNET_RUNS, else
    ~/effnet-ray/runs."""
    verbose: bool = False
    """Show Ray's own logs."""


def data_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `data`."""
    flags = parse(Data, argv, Data(data=tyro.MISSING, runs=default_runs()))
    page = output_uri(flags.page, "page", ".html")
    from effnet_ray import storage
    from effnet_ray.data import manifest as manifests
    from effnet_ray.packing import report
    from effnet_ray.reporting import data_page

    spec = Recipe(variant=flags.variant, image_size=flags.image_size).variant_spec.input_spec(
        "best"
    )
    if flags.image_size:
        spec = replace(spec, resolution=flags.image_size)
    with Terminal() as terminal:
        connect = connector(terminal, local=False, verbose=flags.verbose)
        found = find_data(flags.data, flags.runs, terminal)
        data = manifests.folder(storage.absolute(found.pack(terminal, connect)))
        page = page or storage.join(data, data_page.NAME)
        data_page.write_page(data, page, spec)
        manifest, built = manifests.load(data), report.load(data)
        if found.source:  # packing has printed the rest
            terminal.print(f"wrote {page}")
        else:
            with manifests.consistent(data):
                print_data_set(terminal, manifest, built, data, page=page)
    return {
        "data": data,
        "fingerprint": manifest.fingerprint,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "quarantined": manifest.quarantined,
        "set_aside": len(built.set_aside),
        "duplicates": built.duplicates,
        "near_duplicates": built.near_duplicates,
        "label_conflicts": built.contradictions,
        "page": page,
    }
