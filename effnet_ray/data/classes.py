"""Class names, and labels as indices into them.

In a source, a label is a name or a number. In a multilabel source it is a list of labels, or
a text of labels with a separator, and may be empty.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from effnet_ray import safe_json, storage
from effnet_ray.errors import DatasetError
from effnet_ray.recipe import MULTICLASS, MULTILABEL

LABEL, LABELS = pa.int64(), pa.list_(pa.int64())
"""Types of a label column: multiclass, multilabel."""

Label = int | list[int]
"""An image's label: an index into the class names, or in a multilabel data set a list of these."""


def read_class_names(uri: str) -> tuple[str, ...]:
    """Class names from a file: one per line, or a JSON list. Raises DatasetError."""
    try:
        text = storage.read_bytes(storage.absolute(uri)).decode()
        names = safe_json.parse(text) if text.lstrip().startswith("[") else text.splitlines()
    except ValueError as error:
        raise DatasetError(
            f"{uri} has no class names ({error}): expected one per line, or a JSON list"
        ) from error
    stripped = tuple(str(name).strip() for name in names if str(name).strip())
    if len(set(stripped)) < len(stripped):
        raise DatasetError(f"{uri} lists a class name twice: list each class once, one per line")
    return stripped


def normalize_label(value: Any, separator: str, names: Sequence[str] | None = None) -> str | None:
    """A source's label as text; None if there is none.

    With a separator, the image's labels as a JSON list, sorted and without duplicates. A number is
    replaced by its class name if `names` are given. Raises ValueError for a list without a
    separator.
    """

    def normalize(label: Any) -> str:
        text = str(label).strip() if separator else str(label)
        if names and text.isdigit() and int(text) < len(names):
            return names[int(text)]
        return text

    if separator:
        parts = value.split(separator) if isinstance(value, str) else _as_list(value)
        return json.dumps(sorted({normalize(part) for part in parts} - {""}), ensure_ascii=False)
    if isinstance(value, list):
        raise ValueError("several labels for one image: pack with --task multilabel")
    return None if value is None or value == "" else normalize(value)


def _as_list(value: Any) -> Sequence[Any]:
    if isinstance(value, list):
        return [part for part in value if part is not None]
    return () if value is None else (value,)


def encode_labels(
    labels: Sequence[str],
    names: Sequence[str] | None,
    task: str,
    source: str,
    *,
    merge_similar: bool = False,
) -> tuple[tuple[str, ...], pa.Array]:
    """Class names, and a column of every image's label as indices into them.

    `labels` are texts of `normalize_label`, `names` the class names if the source has them.
    Labels that differ in their Unicode form only are one class. Raises DatasetError for a label
    that is no class, and, unless `merge_similar`, for labels that differ in case or blanks only.
    """
    lists = [] if task == MULTICLASS else [json.loads(label) for label in labels]
    distinct = sorted(set(labels if task == MULTICLASS else chain.from_iterable(lists)))
    spelling = _spellings(distinct, names, source, merge_similar)
    classes, number = _index_classes(set(spelling.values()), names, source)
    index = {label: number[name] for label, name in spelling.items()}
    if task == MULTICLASS:
        return classes, pa.array([index[label] for label in labels], LABEL)
    indices = [sorted({index[label] for label in image_labels}) for image_labels in lists]
    return classes, pa.array(indices, LABELS)


def _spellings(
    labels: Sequence[str], names: Sequence[str] | None, source: str, merge_similar: bool
) -> dict[str, str]:
    """One spelling for each of the distinct labels: that of `names`, if the source has them."""
    form = _simplified if merge_similar else _composed
    if names:
        known = {form(name): name for name in names} | {name: name for name in names}
        return {label: known.get(label, known.get(form(label), label)) for label in labels}
    similar = defaultdict[str, list[str]](list)
    for label in labels:
        similar[_simplified(label)].append(label)
    spelling = dict[str, str]()
    for group in similar.values():
        forms = sorted(
            {_composed(label) for label in group}, key=lambda name: (name.strip() != name, name)
        )
        if len(forms) > 1 and not merge_similar:
            raise DatasetError(
                f"{source} has the classes {forms[0]!r} and {forms[1]!r}, which differ in case or "
                "blanks only: rename one, or run again with --merge-similar-classes"
            )
        spelling |= dict.fromkeys(group, forms[0])
    return spelling


def _composed(name: str) -> str:
    """The name with composed characters: é is one, not e and an accent (Unicode's form C)."""
    return unicodedata.normalize("NFC", name)


def _simplified(name: str) -> str:
    """The name without case, and with single blanks between its words only."""
    return _composed(" ".join(name.split()).lower())


def _index_classes(
    labels: set[str], names: Sequence[str] | None, source: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the class index of every distinct label."""
    distinct = sorted(labels)
    numeric = _are_plain_numbers(distinct)
    if not names:
        names = sorted(distinct, key=int) if numeric else distinct
    if numeric and not set(distinct) <= set(names):
        index = {label: int(label) for label in distinct}  # the numbers are indices into the names
    else:
        index = {name: number for number, name in enumerate(names)}
    wrong = [label for label in distinct if index.get(label, len(names)) >= len(names)]
    if wrong:
        raise DatasetError(
            f"{source} has the label {wrong[0]!r}, which is not one of the {len(names)} classes: "
            "correct the labels or the file of class names"
        )
    return tuple(names), index


def _are_plain_numbers(names: Iterable[str]) -> bool:
    """Whether all are numbers without leading zeros."""
    return all(re.fullmatch(r"0|[1-9]\d{0,8}", name) for name in names)


def task_of(label: pa.DataType) -> str:
    """The task of a data set with such a label column."""
    return MULTILABEL if pa.types.is_list(label) else MULTICLASS


def format_label(label: Label, classes: Sequence[str]) -> str:
    """An image's label as class names."""
    if isinstance(label, int):
        return classes[label]
    return ", ".join(classes[index] for index in label) or "no class"
