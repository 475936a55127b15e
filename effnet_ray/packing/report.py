"""What was packed, for people and for `report.json`: counts, sizes, and what deserves a look."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.classes import task_of
from effnet_ray.data.manifest import Manifest
from effnet_ray.recipe import MULTICLASS
from effnet_ray.schema import from_dict
from effnet_ray.storage.parquet import column_values

NAME = "report.json"

TINY = 10
"""A class with fewer train images is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A data set in numbers."""

    images: dict[str, list[int]]
    """Per split, the images of every class, in the order of the classes; one of several classes
    counts for each."""
    bytes: dict[str, list[int]]
    """Per split, the bytes of every class's images."""
    width: tuple[int, ...]
    height: tuple[int, ...]
    """px: the smallest, the median and the largest."""
    quarantined: dict[str, int]
    """Reason → images."""
    duplicates: int
    """Images that have an equal one, byte for byte."""
    moved: int
    """Images moved to the split of their equals."""
    near_duplicates: int
    """Pairs of nearly equal images in different splits."""
    contradictions: int
    """Pairs of equal images with different labels."""
    tiny: dict[str, int]
    """Classes with fewer than TINY train images → how many."""


def build_report(
    manifest: Manifest, seen: pa.Table, split: np.ndarray[Any, Any], found: pa.Table, moved: int
) -> Report:
    """The report from all that was seen; `found` are the duplicates."""
    good = np.asarray([not reason for reason in column_values(seen, "reason")], bool)
    image, label = _labels(seen.take(np.flatnonzero(good)))
    size = seen["bytes"].to_numpy()[good][image]
    of = {n: (split[good] == i)[image] for i, n in enumerate(("train", "eval", "test"))}
    many = len(manifest.classes)
    exact = np.asarray(column_values(found, "distance"), np.int64) == 0
    other = np.asarray(found["label"]) != np.asarray(found["other_label"])
    kinds = np.asarray(found["split"]) != np.asarray(found["other_split"])
    reasons = Counter(reason for reason in column_values(seen, "reason") if reason)
    digests = Counter(column_values(seen.take(np.flatnonzero(good)), "digest"))
    images = {n: np.bincount(label[of[n]], minlength=many).tolist() for n in manifest.splits}
    return Report(
        images=images,
        bytes={
            n: np.bincount(label[of[n]], size[of[n]], many).astype(int).tolist()
            for n in manifest.splits
        },
        width=_spread(seen["width"].to_numpy()[good]),
        height=_spread(seen["height"].to_numpy()[good]),
        quarantined=dict(reasons.most_common(20)),
        duplicates=sum(count for count in digests.values() if count > 1),
        moved=moved,
        near_duplicates=int((~exact & kinds).sum()),
        contradictions=int((exact & other).sum()),
        tiny={
            name: count
            for name, count in zip(manifest.classes, images["train"], strict=True)
            if count < TINY
        },
    )


def _labels(seen: pa.Table) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Every label of every image: the image's place, and the class."""
    label = seen["label"].combine_chunks()
    if task_of(label.type) == MULTICLASS:
        return np.arange(len(seen)), label.to_numpy()
    return label.value_parent_indices().to_numpy(), label.flatten().to_numpy()


def _spread(values: np.ndarray[Any, Any]) -> tuple[int, ...]:
    if not len(values):
        return (0, 0, 0)
    return int(values.min()), int(np.median(values)), int(values.max())


def write(report: Report, data: str) -> None:
    """Write `data`/report.json."""
    raw = json.dumps(asdict(report), indent=1, ensure_ascii=False).encode()
    storage.write_bytes(storage.join(data, NAME), raw)


def load(data: str) -> Report:
    """Read it back."""
    report: Report = from_dict(Report, json.loads(storage.read_bytes(storage.join(data, NAME))))
    return report
