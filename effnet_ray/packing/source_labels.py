"""Labels in the forms in which tables have them: numbers, one column per class, joined texts."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

import pyarrow as pa

from effnet_ray.data import classes
from effnet_ray.errors import DatasetError
from effnet_ray.packing.options import SourceColumns
from effnet_ray.storage.parquet import column_values

WHOLE_NUMBER = re.compile(r"\d+(\.0+)?")
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""Values of a column that says whether an image has a class, in lower case."""
SEPARATORS = "|,;/\t "
MIN_SHARE = 0.1
"""Of the labels, as many must contain a separator for it to be named. Chosen, not measured."""


def read_labels(
    rows: pa.Table, columns: SourceColumns, others: Collection[str], source: str
) -> list[str | None]:
    """Return every row's label as `classes.normalize_label` does; None for none.

    Without a label column, columns of 0 and 1 are taken for one column per class; `others` are
    the columns with another meaning. Raises DatasetError for labels that are not clear.
    """
    if columns.label_column not in rows.column_names:
        values = _from_one_hot(rows, one_hot_columns(rows, others), columns, source)
    else:
        values = column_values(rows, columns.label_column)
    try:
        labels = [classes.normalize_label(value, columns.separator) for value in values]
    except ValueError as error:
        raise DatasetError(f"{source} has {error}") from error
    names = set(classes.read_class_names(columns.classes) if columns.classes else ())
    return labels if columns.separator or names >= set(labels) else _whole_numbers(labels)


def one_hot_columns(rows: pa.Table, others: Collection[str]) -> list[str]:
    """Return the columns beside `others` if each has 0 and 1 only, and there are two or more."""
    names = [name for name in rows.column_names if name not in others]
    flags = all(_flag(value) is not None for name in names for value in rows[name].unique())
    return names if flags and len(names) > 1 else []


def _flag(value: pa.Scalar) -> bool | None:
    return FLAGS.get(str(value.as_py()).strip().lower())


def _from_one_hot(
    rows: pa.Table, names: Sequence[str], columns: SourceColumns, source: str
) -> list[str | list[str]]:
    """Return each row's class, or all its classes if an image may have several."""
    flags = [[_flag(value) for value in rows[name]] for name in names]
    labels = [
        [name for name, flag in zip(names, row, strict=True) if flag]
        for row in zip(*flags, strict=True)
    ]
    if columns.separator:
        return list(labels)
    for number, label in enumerate(labels, start=1):
        if len(label) != 1:
            raise DatasetError(
                f"{source} has one column per class, and {len(label)} classes in row {number}: if "
                "images may have none or several, pack with --task multilabel"
            )
    return [label for (label,) in labels]


def _whole_numbers(labels: list[str | None]) -> list[str | None]:
    """The labels; those of a float column of whole numbers, such as 1.0, as integers."""
    distinct = {label for label in labels if label}
    numeric = all(map(WHOLE_NUMBER.fullmatch, distinct))
    if not numeric or not any("." in label for label in distinct):
        return labels
    return [label and label.partition(".")[0] for label in labels]


def separator_note(names: Sequence[str], labels: pa.Array, separator: str) -> str:
    """Return a sentence if the labels of a multilabel source seem to have another separator.

    `labels` are lists of indices into the class names. Empty if an image has several labels, or
    no separator occurs in a tenth of them.
    """
    lists = labels.to_pylist()
    if any(len(label) > 1 for label in lists):
        return ""
    texts = [names[index] for label in lists for index in label]
    counts = Counter(mark for text in texts for mark in SEPARATORS if mark in text.strip())
    if not counts or max(counts.values()) < MIN_SHARE * len(texts):
        return ""
    mark = max(counts, key=lambda mark: (counts[mark], -SEPARATORS.index(mark)))
    example = next(text for text in texts if mark in text)
    return (
        f"no image has several labels, but {counts[mark]:,} labels contain {mark!r}, such as "
        f"{example!r}: if it separates labels, pack again with --label-separator {mark!r} (now "
        f"{separator!r})"
    )
