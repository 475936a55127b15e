"""Top-1 of groups of images, such as those of one camera, patient or site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from effnet_ray.data import manifest as manifests
from effnet_ray.errors import DatasetError
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.packing import image_index
from effnet_ray.storage.parquet import column_values
from effnet_ray.train.metric_definitions import EVAL_TOP1

MIN_IMAGES = 10
"""A group with fewer images is the worst only if all have fewer. Chosen, not measured."""
GROUP = "group of this evaluation"
"""Name of the column in the index, which no source's has."""
WITHOUT = "(none)"
"""The group of images without a value."""


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Top-1 of one group. Field names are keys of the JSON line."""

    group: str
    images: int
    """Readable images."""
    top1: float
    """0 to 1."""
    interval: tuple[float, float] | None
    """Its 95 % confidence interval (Wilson)."""

    def __str__(self) -> str:
        """`camera 3: 71.25% (64.1 to 77.5), 180 images`, without the column's name."""
        score = EVAL_TOP1.format(self.top1, self.images)
        return f"{self.group}: {score}, {self.images:,} images"


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Top-1 of every group of a column."""

    column: str
    scores: tuple[GroupScore, ...]
    """The lowest top-1 first; groups of fewer than `MIN_IMAGES` images last."""

    @property
    def worst(self) -> GroupScore:
        """The group with the lowest top-1."""
        return self.scores[0]

    def as_json(self, most: int = 100) -> dict[str, Any]:
        """Its entry in the JSON line, with the `most` worst groups."""
        rows = [
            {
                "group": s.group,
                "images": s.images,
                "top1": s.top1,
                "interval": [*(s.interval or ())],
            }
            for s in self.scores[:most]
        ]
        return {"column": self.column, "groups": len(self.scores), "worst": rows}


def check_group_column(data: str, column: str) -> pa.Table:
    """The index of a data set's images, with this column as GROUP.

    Raises DatasetError if packing did not keep the column.
    """
    index = image_index.read_image_index(manifests.folder(data))
    kept = image_index.kept_columns(index)
    if column not in kept:
        raise DatasetError(
            f"{data} has no column {column!r} of its images, only "
            f"{', '.join(kept) or 'none'}: run `pack` again with the same --source and --out and "
            f"--keep-columns {column}, which adds it"
        )
    return index.append_column(GROUP, index[kept[column]])


def group_scores(evaluation: Evaluation, index: pa.Table, column: str) -> GroupScores:
    """Top-1 of the groups of an evaluation; `index` as `check_group_column` returns it.

    Raises DatasetError if no image can be read.
    """
    split = np.asarray(column_values(index, "split"), object)
    chosen = index.filter(pa.array(split == evaluation.split))
    chosen = chosen.slice(0, evaluation.metrics.processed)
    unreadable = {path for path, _ in evaluation.metrics.unreadable.values()}
    names = [
        WITHOUT if name is None else str(name)
        for name, path in zip(
            column_values(chosen, GROUP), column_values(chosen, "path"), strict=True
        )
        if path not in unreadable
    ]
    return GroupScores(column, _scores(names, evaluation.metrics.hits))


def _scores(names: Sequence[str], hits: Any) -> tuple[GroupScore, ...]:
    """The groups' scores in the order of `GroupScores`; `hits` [n] bool."""
    groups, member = np.unique(np.asarray(names, object).astype(str), return_inverse=True)
    images = np.bincount(member, minlength=len(groups))
    right = np.bincount(member, weights=hits, minlength=len(groups))
    scores = [
        GroupScore(str(name), int(count), top1, EVAL_TOP1.interval(top1, int(count)))
        for name, count, top1 in zip(groups, images, (right / images).tolist(), strict=True)
    ]
    return tuple(sorted(scores, key=lambda s: (s.images < MIN_IMAGES, s.top1, -s.images)))
