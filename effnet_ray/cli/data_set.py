"""The data set that a job uses: that of `--data`, or the sample data.

A job uses packed data sets only; `cli.pack` packs a folder of images. Packing on demand would go
into `data_uri`; `check` calls it too, and must not pack a user's images.
"""

from effnet_ray.cli.flags import HOME
from effnet_ray.cli.terminal import Terminal


def data_uri(data: str, terminal: Terminal) -> str:
    """URI of the data set of `--data`; of the sample data if `data` is empty."""
    return data or _sample_data(terminal)


def _sample_data(terminal: Terminal) -> str:
    """URI of the sample data set, packed on first use."""
    from effnet_ray import storage
    from effnet_ray.data import manifest as manifests

    out = storage.absolute(f"{HOME}/sample-data")
    if not storage.exists(storage.join(out, manifests.NAME)):
        from effnet_ray.packing.sample import pack_sample

        terminal.print(f"packing the sample data (1,797 handwritten digits) into {out}")
        pack_sample(out)
    terminal.print(f"no --data: using the sample data in {out}")
    return out
