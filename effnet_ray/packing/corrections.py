"""Corrections of a source's labels: a CSV that `evaluate` proposes and a person decides.

    path,label,suggested,reason,confidence,decision,…
    cat/7.jpg,cat,dog,the model predicts another class,0.98,relabel:dog

Rows without a decision change nothing. Other columns, such as who decided, when and why, are kept
with the data set.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from effnet_ray import storage
from effnet_ray.errors import DatasetError
from effnet_ray.packing.listing import Listing, SetAside, flat_labels, replace_column
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.tables import read_csv
from effnet_ray.storage.parquet import column_values

NAME = "corrections.csv"
"""File beside the manifest with the rows that were applied."""
COLUMNS = ("path", "label", "suggested", "reason", "confidence", "decision")
DROP, KEEP, RELABEL = "drop", "keep", "relabel:"


class Corrections(NamedTuple):
    """The decided rows of a file."""

    decisions: dict[str, str]
    """Path → drop, keep or relabel:CLASS."""
    rows: pa.Table
    """All columns of the file, as text."""

    @property
    def digest(self) -> str:
        """SHA-256 of the decisions; independent of the order of the rows and of other columns."""
        content = json.dumps(sorted(self.decisions.items()), ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_csv(self) -> bytes:
        """The rows as a CSV."""
        sink = io.BytesIO()
        pa.csv.write_csv(self.rows, sink)
        return sink.getvalue()


def read_corrections(uri: str) -> Corrections:
    """Read the decided rows of a CSV.

    Raises DatasetError for missing columns, an unknown decision, or two decisions for an image.
    """
    table = read_csv(storage.absolute(uri))
    for name in ("path", "decision"):
        if table.column_names.count(name) != 1:
            raise DatasetError(f"{uri} needs one column {name!r}: expected {', '.join(COLUMNS)}")
    decided = [bool((text or "").strip()) for text in column_values(table, "decision")]
    rows = table.filter(pa.array(decided, pa.bool_()))
    chosen = dict[str, str]()
    for path, text in zip(
        column_values(rows, "path"), column_values(rows, "decision"), strict=True
    ):
        decision = _normalize(text, path, uri)
        if chosen.setdefault(path, decision) != decision:
            raise DatasetError(
                f"{uri} has the decisions {chosen[path]!r} and {decision!r} for {path}: decide "
                "once for each image"
            )
    return Corrections(chosen, rows)


def _normalize(text: str, path: str, uri: str) -> str:
    """A decision without blanks around its parts. Raises DatasetError for an unknown one."""
    verb, colon, label = text.strip().partition(":")
    verb = verb.strip().lower()
    if f"{verb}:" == RELABEL and colon:
        return RELABEL + label.strip()
    if verb in (DROP, KEEP) and not colon:
        return verb
    raise DatasetError(
        f"{uri} has the decision {text!r} for {path}: expected drop, keep or relabel:CLASS"
    )


def apply_corrections(
    listing: Listing, corrections: Corrections, uri: str, packing: SourceColumns
) -> tuple[Listing, npt.NDArray[np.bool_]]:
    """The listing without the dropped images and with the new labels; which images it keeps.

    Raises DatasetError for an image that is not listed, a class that does not exist, and, unless
    they are allowed, a class that has no image any more.
    """
    decisions = corrections.decisions
    paths = column_values(listing.images, "path")
    missing = sorted(decisions.keys() - set(paths))
    if missing:
        raise DatasetError(
            f"{uri} has decisions for {len(missing):,} images that the source does not have, for "
            f"example {', '.join(missing[:3])}: pass the file that was made for this source"
        )
    number = {name.strip(): index for index, name in enumerate(listing.classes)}
    number |= {name: index for index, name in enumerate(listing.classes)}
    labels = [
        _new_label(decisions.get(path, ""), label, number, uri, packing.separator)
        for path, label in zip(paths, column_values(listing.images, "label"), strict=True)
    ]
    kept = np.asarray([decisions.get(path) != DROP for path in paths], bool)
    kind = listing.images.schema.field("label").type
    images = replace_column(listing.images, "label", pa.array(labels, kind)).filter(pa.array(kept))
    dropped = [SetAside(path, "dropped by the corrections")
               for path, keep in zip(paths, kept, strict=True) if not keep]  # fmt: skip
    corrected = replace(
        listing,
        images=images,
        set_aside=tuple(sorted([*listing.set_aside, *dropped], key=lambda entry: entry.path)),
    )
    if not packing.allow_empty_classes:
        _refuse_emptied_classes(listing, corrected, uri)
    return corrected, kept


def _refuse_emptied_classes(before: Listing, after: Listing, uri: str) -> None:
    """Raise DatasetError for a class of which the corrections leave no image."""
    emptied = {*flat_labels(before.images)[1].tolist()} - {*flat_labels(after.images)[1].tolist()}
    if emptied:
        raise DatasetError(
            f"{uri} leaves no image of class {before.classes[min(emptied)]!r}: keep some, remove "
            "the class from the source, or run again with --allow-empty-classes"
        )


def _new_label(
    decision: str,
    label: int | list[int],
    number: Mapping[str, int],
    uri: str,
    separator: str,
) -> int | list[int]:
    """The label after a decision. Raises DatasetError for an unknown class."""
    if not decision.startswith(RELABEL):
        return label
    text = decision.removeprefix(RELABEL)
    names = [name.strip() for name in text.split(separator)] if separator else [text]
    if separator:
        names = [name for name in names if name]
    for name in names:
        if name not in number:
            raise DatasetError(
                f"{uri} has the decision {decision!r}, but there is no class {name!r}: "
                f"expected {' or '.join(list(number)[:5])}{' …' if len(number) > 5 else ''}"
            )
    indices = sorted({number[name] for name in names})
    return indices if separator else indices[0]
