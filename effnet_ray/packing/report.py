"""`report.json`: a packed data set in numbers, with what may need attention."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from effnet_ray import safe_json, storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import SPLITS, Manifest
from effnet_ray.packing.listing import Listing, SetAside, flat_labels
from effnet_ray.schema import from_dict
from effnet_ray.storage.parquet import column_values

NAME = "report.json"

TINY = 10
"""A class with fewer train images is listed as tiny: with the default eval fraction, a
fifth, it has about two eval images, so its eval metrics say little. The list is a warning only."""
MAX_VALUES = 20
"""Reasons for quarantine and ranges of values that are listed, the most frequent ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A data set in numbers."""

    images: dict[str, list[int]]
    """Per split, the images of every class, in the order of the classes; a multilabel image
    counts for each of its classes."""
    bytes: dict[str, list[int]]
    """Per split, the bytes of every class's images."""
    width: tuple[int, ...]
    """Smallest, median and largest, px."""
    height: tuple[int, ...]
    """Smallest, median and largest, px."""
    quarantined: dict[str, int]
    """Reason → images."""
    duplicates: int
    """Images that have a byte-identical one."""
    moved: int
    """Images moved to the split of an identical one."""
    near_duplicates: int
    """Pairs of nearly identical images in different splits."""
    contradictions: int
    """Pairs of identical images with different labels."""
    tiny: dict[str, int]
    """Classes with fewer than TINY train images → their train images."""
    seen: int = 0
    """Entries of the source: packed and quarantined images, and what was set aside."""
    set_aside: tuple[SetAside, ...] = ()
    """Entries that are not images, with the reason."""
    without_images: tuple[str, ...] = ()
    """Folders beside the class folders without any image."""
    value_ranges: dict[str, int] = field(default_factory=dict)
    """Range of values that is black to white → images of more than 8 bits per value."""
    notes: tuple[str, ...] = ()
    """Sentences about what may need attention."""


def build_report(
    manifest: Manifest,
    records: pa.Table,
    split: npt.NDArray[np.int64],
    pairs: pa.Table,
    moved: int,
    listing: Listing,
) -> Report:
    """Return the report of all images' records; `pairs` is the table of duplicates."""
    readable = np.asarray([not reason for reason in column_values(records, "reason")], bool)
    packed = records.take(np.flatnonzero(readable))
    images, sizes = _per_class(packed, split[readable], manifest)
    exact = np.asarray(column_values(pairs, "distance"), np.int64) == 0
    labels_differ = np.asarray(pairs["label"]) != np.asarray(pairs["other_label"])
    splits_differ = np.asarray(pairs["split"]) != np.asarray(pairs["other_split"])
    digests = Counter(column_values(packed, "digest"))
    train = images.get("train", [0] * len(manifest.classes))
    return Report(
        images=images,
        bytes=sizes,
        width=_range(packed["width"].to_numpy()),
        height=_range(packed["height"].to_numpy()),
        quarantined=_count(records, "reason"),
        duplicates=sum(count for count in digests.values() if count > 1),
        moved=moved,
        near_duplicates=int((~exact & splits_differ).sum()),
        contradictions=int((exact & labels_differ).sum()),
        tiny={
            name: count
            for name, count in zip(manifest.classes, train, strict=True)
            if count < TINY
        },
        seen=listing.seen,
        set_aside=listing.set_aside,
        without_images=listing.without_images,
        value_ranges=_count(packed, "value_range"),
        notes=listing.notes,
    )


def _per_class(
    packed: pa.Table, split: npt.NDArray[np.int64], manifest: Manifest
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Images and bytes of every class in each split; `split` is every packed image's."""
    image, label = flat_labels(packed)
    size, label_split = packed["bytes"].to_numpy()[image], split[image]
    classes = len(manifest.classes)
    images, sizes = {}, {}
    for name in manifest.splits:
        inside = label_split == SPLITS.index(name)
        images[name] = np.bincount(label[inside], minlength=classes).tolist()
        sizes[name] = np.bincount(label[inside], size[inside], classes).astype(int).tolist()
    return images, sizes


def _count(records: pa.Table, name: str) -> dict[str, int]:
    """Value → images of the column's MAX_VALUES most frequent values, without empty ones."""
    counts = Counter(value for value in column_values(records, name) if value)
    return dict(counts.most_common(MAX_VALUES))


def _range(values: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the smallest, median and largest value; zeros without values."""
    if not len(values):
        return (0, 0, 0)
    return int(values.min()), int(np.median(values)), int(values.max())


def write(report: Report, data: str) -> None:
    """Write `data`/report.json."""
    raw = json.dumps(asdict(report), indent=1, ensure_ascii=False).encode()
    storage.write_bytes(storage.join(data, NAME), raw)


def load(data: str) -> Report:
    """Read `data`/report.json, also of earlier versions, which had other fields too.

    Raises DatasetError if it is no report.
    """
    raw = storage.read_bytes(storage.join(data, NAME))
    with manifests.consistent(data):
        content = safe_json.parse(raw)
        names = {field.name for field in fields(Report)}
        values = {name: value for name, value in content.items() if name in names}
        values["set_aside"] = [from_dict(SetAside, each) for each in content.get("set_aside", [])]
        report: Report = from_dict(Report, values)
    return report
