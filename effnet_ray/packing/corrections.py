"""Corrections of a source's labels: a CSV that `evaluate` proposes and a person decides.

    path,label,suggested,reason,confidence,decision,…
    cat/7.jpg,cat,dog,the model predicts another class,0.98,relabel:dog

Rows without a decision change nothing. Other columns, such as who decided, when and why, are kept
with the data set.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from effnet_ray import storage
from effnet_ray.errors import DatasetError
from effnet_ray.packing.listing import Listing, SetAside, replace_column
from effnet_ray.packing.tables import read_csv
from effnet_ray.storage.parquet import column_values

NAME = "corrections.csv"
"""File beside the manifest with the rows that were applied."""
COLUMNS = ("path", "label", "suggested", "reason", "confidence", "decision")
DROP, KEEP, RELABEL = "drop", "keep", "relabel:"


class Corrections(NamedTuple):
    """The decided rows of a file."""

    rows: pa.Table
    """With the columns `path` and `decision`, and all others of the file, as text."""

    @property
    def decisions(self) -> dict[str, str]:
        """Path → drop, keep or relabel:CLASS."""
        paths, decisions = (column_values(self.rows, name) for name in ("path", "decision"))
        return dict(zip(paths, decisions, strict=True))

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
        if name not in table.column_names:
            raise DatasetError(f"{uri} has no column {name!r}: expected {', '.join(COLUMNS)}")
    decisions = [(text or "").strip() for text in column_values(table, "decision")]
    table = replace_column(table, "decision", pa.array(decisions, pa.string()))
    rows = table.filter(pa.array([bool(decision) for decision in decisions]))
    chosen = dict[str, str]()
    for path, decision in zip(
        column_values(rows, "path"), column_values(rows, "decision"), strict=True
    ):
        label = decision.removeprefix(RELABEL)
        if decision not in (DROP, KEEP) and (label == decision or not label.strip()):
            raise DatasetError(
                f"{uri} has the decision {decision!r} for {path}: expected drop, keep or "
                "relabel:CLASS"
            )
        if chosen.setdefault(path, decision) != decision:
            raise DatasetError(
                f"{uri} has the decisions {chosen[path]!r} and {decision!r} for {path}: decide "
                "once for each image"
            )
    return Corrections(rows)


def apply_corrections(
    listing: Listing, corrections: Corrections, uri: str, separator: str
) -> Listing:
    """The listing without the dropped images, and with the new labels.

    Raises DatasetError for an image that is not listed, or a class that does not exist.
    """
    decisions = corrections.decisions
    paths = column_values(listing.images, "path")
    missing = sorted(decisions.keys() - set(paths))
    if missing:
        raise DatasetError(
            f"{uri} has decisions for {len(missing):,} images that the source does not have, for "
            f"example {', '.join(missing[:3])}: pass the file that was made for this source"
        )
    number = {name: index for index, name in enumerate(listing.classes)}
    labels = [
        _new_label(decisions.get(path, ""), label, number, uri, separator)
        for path, label in zip(paths, column_values(listing.images, "label"), strict=True)
    ]
    kind = listing.images.schema.field("label").type
    images = replace_column(listing.images, "label", pa.array(labels, kind))
    dropped = [decisions.get(path) == DROP for path in paths]
    reasons = [SetAside(path, "dropped by the corrections") for path in paths
               if decisions.get(path) == DROP]  # fmt: skip
    return replace(
        listing,
        images=images.filter(pa.array([not drop for drop in dropped])),
        set_aside=tuple(sorted([*listing.set_aside, *reasons], key=lambda entry: entry.path)),
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
    text = decision.removeprefix(RELABEL).strip()
    names: Sequence[str] = text.split(separator) if separator else [text]
    for name in names:
        if name.strip() not in number:
            raise DatasetError(
                f"{uri} has the decision {decision!r}, but there is no class {name.strip()!r}: "
                f"expected {' or '.join(list(number)[:5])}{' …' if len(number) > 5 else ''}"
            )
    indices = sorted({number[name.strip()] for name in names})
    return indices if separator else indices[0]
