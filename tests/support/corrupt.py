"""Copies of a data set with images or row groups that are corrupt."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import manifest as manifests


def corrupted_copy(
    digits: Path, data: Path, places: list[int], rows: int | None = None
) -> list[int]:
    """A data set, its manifest true of its bytes, with train images that do not decode; their ids.

    `rows` shortens the first row group to so many, which the manifest does not say.
    """
    manifest = manifests.load(str(digits))
    for path in storage.sizes(str(digits)):
        storage.upload(digits / path, str(data / path))
    shard = manifest.splits["train"][0]
    table = pq.read_table(data / shard.path)
    records = table.to_pylist()
    for place in places:
        records[place]["image"]["bytes"] = b"\x89PNG" + bytes(40)
        digest = hashlib.sha256(records[place]["image"]["bytes"])
        records[place]["digest"] = digest.hexdigest()
    altered = type(table).from_pylist(records, schema=table.schema)
    with pq.ParquetWriter(data / shard.path, table.schema) as writer:
        first = 0
        for images in shard.row_groups:
            kept = min(images, rows or images) if first == 0 else images
            writer.write_table(altered.slice(first, kept), row_group_size=images)
            first += images
    raw = (data / shard.path).read_bytes()
    changed = replace(shard, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    splits = {**manifest.splits, "train": (changed, *manifest.splits["train"][1:])}
    manifests.write(replace(manifest, splits=splits), str(data))
    return [int(records[place]["id"]) for place in places]
