"""Writes the results of packing next to the shards: quarantine, duplicates, report, manifest."""

import numpy as np
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data import classes, manifest as manifests
from effnet_ray.data.manifest import SPLITS, Manifest, Shard
from effnet_ray.data.train_labels import write_train_labels
from effnet_ray.errors import DatasetError
from effnet_ray.packing import duplicates, report
from effnet_ray.packing.image_index import write_image_index
from effnet_ray.packing.listing import Listing, flat_labels
from effnet_ray.packing.options import Packing
from effnet_ray.packing.shards import WrittenShard
from effnet_ray.packing.splits import Ints
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

QUARANTINE = "quarantine.parquet"
DUPLICATES = "duplicates.parquet"

MadeFrom = dict[str, str | int | float]
"""What a data set is made from: see `Manifest.made_from`."""


def all_records(written: dict[str, WrittenShard]) -> pa.Table:
    """Return the records of all images, by id."""
    return pa.concat_tables([shard.records for shard in written.values()]).sort_by("id")


def write_results(
    listing: Listing,
    written: dict[str, WrittenShard],
    before: Ints,
    split: Ints,
    packing: Packing,
    made_from: MadeFrom,
    out: str,
) -> Manifest:
    """Write the quarantine, the duplicates, the report and, last, the manifest.

    Raises DatasetError for a class of which no train image can be read.
    """
    records = all_records(written)
    reasons = column_values(records, "reason")
    unreadable = records.take(np.flatnonzero([bool(reason) for reason in reasons]))
    quarantine = unreadable.select(["path", "reason", "digest"])
    parquet.write_table(storage.join(out, QUARANTINE), quarantine)
    pairs = duplicates.duplicates_table(records, split, listing.classes)
    parquet.write_table(storage.join(out, DUPLICATES), pairs)
    task = classes.task_of(listing.images.schema.field("label").type)
    manifest = Manifest(
        classes=listing.classes,
        splits=_group_by_split(written),
        quarantined=len(unreadable),
        task=task,
        labels_sha256="" if task == MULTILABEL else _write_labels(listing, written, out),
        made_from=made_from,
    )
    moved = int((before != split).sum())
    built = report.build_report(manifest, records, split, pairs, moved, listing)
    report.write(built, out)
    _refuse_unreadable_classes(listing, split, built, packing, out)
    write_image_index(written, listing, packing, out)
    manifests.write(manifest, out)
    return manifest


def _refuse_unreadable_classes(
    listing: Listing, split: Ints, built: report.Report, packing: Packing, out: str
) -> None:
    """Raise DatasetError for a class whose train images are all in quarantine.

    Such classes can be allowed, but not if no other class can be trained.
    """
    image, label = flat_labels(listing.images)
    listed = {*label[split[image] == SPLITS.index("train")].tolist()}
    readable = built.images.get("train", [0] * len(listing.classes))
    if packing.allow_empty_classes and any(readable):
        return
    lost = [name for k, name in enumerate(listing.classes) if k in listed and not readable[k]]
    advice = ", or run again with --allow-empty-classes" if any(readable) else ""
    if lost:
        raise DatasetError(
            f"no train image of class {lost[0]!r} can be read "
            f"({storage.join(out, QUARANTINE)} has the reasons): repair them{advice}"
        )


def _write_labels(listing: Listing, written: dict[str, WrittenShard], out: str) -> str:
    """Write the labels of the train images, in the order of the shards; returns the SHA-256."""
    shards = [result.records for path, result in written.items() if path.startswith("train/")]
    labels = [
        label
        for records in shards
        for label, reason in zip(
            column_values(records, "label"), column_values(records, "reason"), strict=True
        )
        if not reason
    ]
    return write_train_labels(labels, len(listing.classes), out)


def _group_by_split(written: dict[str, WrittenShard]) -> dict[str, tuple[Shard, ...]]:
    """Return the shards of each split; no empty shard or split."""
    shards_of = {
        name: tuple(
            result.shard
            for path, result in written.items()
            if path.startswith(f"{name}/") and result.shard.rows
        )
        for name in SPLITS
    }
    return {name: shards for name, shards in shards_of.items() if shards}
