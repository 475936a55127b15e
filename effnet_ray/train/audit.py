"""The audit: which images every step used, one Parquet row per image and use.

One file per step and rank, written before the worker gives its gradients to the step: a step that
was taken, and so any checkpoint after it, has the rows of every rank. A resumed run first removes
everything at or after the step it resumes from.
"""

import re
from collections.abc import Sequence

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.storage import parquet

NAME = re.compile(r"step-(\d{8})-rank-\d{4}\.parquet")
SCHEMA = pa.schema(
    [pa.field(name, pa.int64()) for name in ("epoch", "step", "rank", "id")]
    + [pa.field("weight", pa.float32())]
)


def write(
    audit: str, *, epoch: int, step: int, rank: int, images: Sequence[tuple[int, float]]
) -> None:
    """Record the images (id, weight) that worker `rank` used in a step of the whole run.

    One that the step uses twice (`Recipe.balance`) is there twice.
    """
    count = len(images)
    table = pa.table(
        {
            "epoch": [epoch] * count,
            "step": [step] * count,
            "rank": [rank] * count,
            "id": [image for image, _ in images],
            "weight": [weight for _, weight in images],
        },
        schema=SCHEMA,
    )
    name = f"step-{step:08d}-rank-{rank:04d}.parquet"
    parquet.write_table(storage.join(audit, name), table)


def remove_from(audit: str, step: int) -> None:
    """Remove what any rank recorded at or after `step`."""
    for name in storage.sizes(audit):
        recorded = NAME.fullmatch(name)
        if recorded and int(recorded[1]) >= step:
            storage.delete(storage.join(audit, name))
