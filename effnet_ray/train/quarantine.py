"""The images that a run could not read, by name: one Parquet row per image and epoch,
or per step where an epoch uses an image in several.

One file per step and rank, only where there is something to say, written before the worker gives
its sums to the others: a step that was taken, and so any checkpoint after it, has named its bad
images. A resumed run first removes everything at or after the step it resumes from. The columns
begin as those of `pack`'s quarantine.parquet.
"""

import re

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.chunks import BadImage
from effnet_ray.storage import parquet

NAME = re.compile(r"step-(\d{8})-rank-\d{4}-(train|eval)\.parquet")
SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("path", "reason", "digest", "split")]
    + [pa.field(name, pa.int64()) for name in ("id", "epoch", "step")]
)


def write(
    folder: str, images: dict[int, BadImage], *, split: str, epoch: int, step: int, rank: int
) -> None:
    """Name images that worker `rank` could not read.

    `step` is of the whole run; an evaluation belongs to its epoch's last step.
    """
    rows = [
        {
            "path": bad.path, "reason": bad.reason, "digest": bad.digest, "split": split,
            "id": image, "epoch": epoch, "step": step,
        }
        for image, bad in images.items()
    ]  # fmt: skip
    name = f"step-{step:08d}-rank-{rank:04d}-{split}.parquet"
    parquet.write_table(storage.join(folder, name), pa.Table.from_pylist(rows, schema=SCHEMA))


def remove_from(folder: str, step: int) -> None:
    """Remove what any rank named at or after `step`."""
    for name in storage.sizes(folder):
        recorded = NAME.fullmatch(name)
        if recorded and int(recorded[1]) >= step:
            storage.delete(storage.join(folder, name))
