"""Proposes corrections of a data set: `evaluate --corrections`, applied by `pack --corrections`.

Rows are suspected label errors of the evaluated split, pairs of identical or nearly identical
images with different labels, and images that cannot be read, the most certain first.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.multiclass import MulticlassMistake
from effnet_ray.inference.multilabel import LabelError
from effnet_ray.packing.corrections import COLUMNS
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.results import DUPLICATES, QUARANTINE
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage import parquet

MAX_SUSPECTS = 10_000
"""Suspected label errors in the file. Chosen, not measured."""
HASH_BITS = 64


class Row(NamedTuple):
    """A proposal; `decision` is left to a person."""

    path: str
    label: str
    suggested: str
    reason: str
    confidence: float
    """0 to 1: how sure the reason makes it."""
    decision: str = ""


def write_corrections(evaluation: Evaluation, uri: str) -> int:
    """Write the proposals as a CSV; returns their number."""
    rows = propose(evaluation)
    table = pa.table([pa.array([row[at] for row in rows]) for at in range(len(COLUMNS))], COLUMNS)
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    return len(rows)


def propose(evaluation: Evaluation) -> list[Row]:
    """The proposals, the most certain first; an image has at most one of each kind."""
    manifest = evaluation.manifest
    rows = list(_suspects(evaluation))
    if not manifest.made_from.get("in_place"):
        folder = manifests.folder(evaluation.data)
        rows += [*_conflicts(folder, manifest.task), *_quarantined(folder)]
    rows += [
        Row(path, "", "", f"cannot be read: {reason}", 1.0)
        for path, reason in evaluation.metrics.unreadable.values()
    ]
    return sorted(rows, key=lambda row: (-row.confidence, row.path))


def _suspects(evaluation: Evaluation) -> Iterator[Row]:
    """Images whose label the model contradicts (confident learning)."""
    names = evaluation.release.classes
    for error in evaluation.metrics.suspects:
        label, suggested = _labels(error, names)
        yield Row(error.path, label, suggested, "the model predicts another label", error.margin)


def _labels(error: MulticlassMistake | LabelError, names: Sequence[str]) -> tuple[str, str]:
    """The label and the suggested one, in the form of a decision."""
    if isinstance(error, MulticlassMistake):
        return names[error.label], names[error.predicted]
    labels = {index for index, _ in error.label}
    missing = {index for index, _ in error.missing_labels}
    wrong = {index for index, _ in error.wrong_labels}
    join = SourceColumns().label_separator.join
    return (
        join(names[k] for k in sorted(labels)),
        join(names[k] for k in sorted((labels | missing) - wrong)),
    )


def _conflicts(data: str, task: str) -> Iterator[Row]:
    """Both images of each pair that looks the same and has different labels."""
    separator = SourceColumns().label_separator if task == MULTILABEL else ", "
    seen = set[str]()
    for pair in parquet.read_table(storage.join(data, DUPLICATES)).to_pylist():
        if pair["label"] == pair["other_label"]:
            continue
        kind = "nearly identical" if pair["distance"] else "identical"
        confidence = round(1 - pair["distance"] / HASH_BITS, 4)
        for one, other in (("", "other_"), ("other_", "")):
            path, label = pair[f"{one}path"], pair[f"{one}label"]
            if path not in seen:
                seen.add(path)
                reason = f"{kind} to {pair[f'{other}path']}"
                label = label.replace(", ", separator)
                suggested = pair[f"{other}label"].replace(", ", separator)
                yield Row(path, label, suggested, reason, confidence)


def _quarantined(data: str) -> Iterator[Row]:
    """Images that packing could not read."""
    for row in parquet.read_table(storage.join(data, QUARANTINE)).to_pylist():
        yield Row(row["path"], "", "", f"cannot be read: {row['reason']}", 1.0)
