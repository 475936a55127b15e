"""Class names, and an image's label, or labels, as indices into them.

In a source a label is a name or a number. Of images that may have several (`MULTILABEL`) it is a
list, or a text of them with a separator, and may be empty.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.errors import DatasetError
from effnet_ray.tasks import MULTICLASS, MULTILABEL

LABEL, LABELS = pa.int64(), pa.list_(pa.int64())
"""Types of a column of labels, for each task."""

Label = int | list[int]


def read_class_names(uri: str) -> tuple[str, ...]:
    """Names from a file, one a line, or a JSON list."""
    text = storage.read_bytes(storage.absolute(uri)).decode()
    names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    stripped = tuple(str(name).strip() for name in names if str(name).strip())
    if len(set(stripped)) < len(stripped):
        raise DatasetError(f"{uri} names a class twice: give each of the classes one line")
    return stripped


def text(value: Any, separator: str, names: Sequence[str] | None = None) -> str | None:
    """A source's label as an index of it holds it; None where there is none.

    With a separator: all of the image's labels, as a JSON list, each once and sorted. `names` are
    those that numbers stand for. Raises ValueError for several labels without one.
    """

    def named(label: Any) -> str:
        told = str(label).strip() if separator else str(label)
        known = names and told.isdigit() and int(told) < len(names)
        return names[int(told)] if names and known else told

    if separator:
        parts = value.split(separator) if isinstance(value, str) else _listed(value)
        return json.dumps(sorted({named(part) for part in parts} - {""}), ensure_ascii=False)
    if isinstance(value, list):
        raise ValueError("several labels for one image: pack with --task multilabel")
    return None if value is None or value == "" else named(value)


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, list):
        return [part for part in value if part is not None]
    return () if value is None else (value,)


def encode_labels(
    found: Sequence[str], known: Sequence[str] | None, task: str, source: str
) -> tuple[tuple[str, ...], pa.Array]:
    """Class names, and every image's label as an index into them, or as a list of these.

    `found`: labels as `text` gives them; `known`: the class names, where the source tells them.
    Raises DatasetError for a label that is none of them.
    """
    if task == MULTICLASS:
        classes, index = _indexed(set(found), known, source)
        return classes, pa.array([index[label] for label in found], LABEL)
    each = [json.loads(labels) for labels in found]
    classes, index = _indexed(set(chain.from_iterable(each)), known, source)
    return classes, pa.array([sorted(index[label] for label in labels) for labels in each], LABELS)


def _indexed(
    labels: set[str], known: Sequence[str] | None, source: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the index of each of the labels that occur."""
    distinct = sorted(labels)
    numbers = _plain(distinct)
    if not known:
        known = sorted(distinct, key=int) if numbers else distinct
    if numbers and not set(distinct) <= set(known):
        index = {name: int(name) for name in distinct}  # numbers that count the known names
    else:
        index = {name: place for place, name in enumerate(known)}
    wrong = [name for name in distinct if index.get(name, len(known)) >= len(known)]
    if wrong:
        raise DatasetError(
            f"{source} has the label {wrong[0]!r}, which is none of the {len(known)} classes: "
            "correct the labels or the file of class names"
        )
    return tuple(known), index


def _plain(names: Iterable[str]) -> bool:
    """Whether all are numbers, written without leading zeros."""
    return all(re.fullmatch(r"0|[1-9]\d{0,8}", name) for name in names)


def task_of(label: pa.DataType) -> str:
    """The task that a column of such labels is of."""
    return MULTILABEL if pa.types.is_list(label) else MULTICLASS


def format_label(label: Label, classes: Sequence[str]) -> str:
    """An image's label in words."""
    if isinstance(label, int):
        return classes[label]
    return ", ".join(classes[index] for index in label) or "no class"
