"""`report.json`: a packed data set in numbers, with what may need attention."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.classes import task_of
from effnet_ray.data.manifest import SPLITS, Manifest
from effnet_ray.recipe import MULTICLASS
from effnet_ray.schema import from_dict
from effnet_ray.storage.parquet import column_values

NAME = "report.json"

TINY = 10
"""A class with fewer train images is listed as tiny: with the default eval fraction, a
fifth, it has about two eval images, so its eval metrics say little. The list is a warning only."""
EXAMPLES = 3
"""Number of ignored files whose paths are listed."""
MAX_REASONS = 20
"""Reasons for quarantine that are listed, the most frequent ones."""


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
    ignored: dict[str, int] = field(default_factory=dict)
    """Suffix → files among the class folders that are no images by their names."""
    ignored_examples: tuple[str, ...] = ()
    """The first few of them."""


def build_report(
    manifest: Manifest,
    records: pa.Table,
    split: npt.NDArray[np.int64],
    pairs: pa.Table,
    moved: int,
    ignored: Sequence[str],
) -> Report:
    """Return the report of all images' records; `pairs` is the table of duplicates."""
    readable = np.asarray([not reason for reason in column_values(records, "reason")], bool)
    packed = records.take(np.flatnonzero(readable))
    image, label = flat_labels(packed)
    size = packed["bytes"].to_numpy()[image]
    label_split = split[readable][image]
    classes = len(manifest.classes)
    images, sizes = {}, {}
    for name in manifest.splits:
        inside = label_split == SPLITS.index(name)
        images[name] = np.bincount(label[inside], minlength=classes).tolist()
        sizes[name] = np.bincount(label[inside], size[inside], classes).astype(int).tolist()
    exact = np.asarray(column_values(pairs, "distance"), np.int64) == 0
    labels_differ = np.asarray(pairs["label"]) != np.asarray(pairs["other_label"])
    splits_differ = np.asarray(pairs["split"]) != np.asarray(pairs["other_split"])
    reasons = Counter(reason for reason in column_values(records, "reason") if reason)
    digests = Counter(column_values(packed, "digest"))
    return Report(
        images=images,
        bytes=sizes,
        width=_range(packed["width"].to_numpy()),
        height=_range(packed["height"].to_numpy()),
        quarantined=dict(reasons.most_common(MAX_REASONS)),
        duplicates=sum(count for count in digests.values() if count > 1),
        moved=moved,
        near_duplicates=int((~exact & splits_differ).sum()),
        contradictions=int((exact & labels_differ).sum()),
        tiny={
            name: count
            for name, count in zip(
                manifest.classes, images.get("train", [0] * classes), strict=True
            )
            if count < TINY
        },
        ignored=dict(Counter(map(_suffix, ignored)).most_common()),
        ignored_examples=tuple(ignored[:EXAMPLES]),
    )


def _suffix(path: str) -> str:
    """The suffix of a file's name in lower case, or "no suffix"."""
    return PurePosixPath(path).suffix.lower() or "no suffix"


def flat_labels(records: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return every label of every image: the image's row, and the class."""
    label = records["label"].combine_chunks()
    if task_of(label.type) == MULTICLASS:
        return np.arange(len(records)), label.to_numpy()
    return label.value_parent_indices().to_numpy(), label.flatten().to_numpy()


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
    """Read `data`/report.json."""
    report: Report = from_dict(Report, json.loads(storage.read_bytes(storage.join(data, NAME))))
    return report
