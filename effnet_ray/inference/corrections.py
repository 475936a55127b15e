"""Proposes corrections of a data set: `evaluate --corrections`, applied by `pack --corrections`.

Rows are images of the evaluated split whose label the model contradicts, pairs of identical or
nearly identical images with different labels, and images that cannot be read. They are ranked by
the probability that the label is wrong: by the model, 1 minus the label's own (*self-confidence*;
on purpose without confident learning's thresholds, which left out two of three errors,
`benchmarks/real/cleaning.py`); of a pair of images, one is wrong.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.multiclass import MulticlassMistake
from effnet_ray.packing.corrections import COLUMNS
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.results import DUPLICATES, QUARANTINE
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage import parquet

MAX_MISTAKES = 10_000
"""Mistakes in the file. Chosen, not measured."""
HASH_BITS, PAIR = 64, 2
SEPARATOR = SourceColumns().label_separator


class Row(NamedTuple):
    """A proposal; `decision` is left to a person."""

    path: str
    label: str
    suggested: str
    reason: str
    confidence: float
    """Probability that the label is wrong, or that the image is of no use, 0 to 1."""
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
    rows = list(_mistakes(evaluation))
    if not manifest.made_from.get("in_place"):
        folder = manifests.folder(evaluation.data)
        rows += [*_conflicts(folder, manifest.task), *_quarantined(folder)]
    rows += [
        Row(path, "", "", f"cannot be read: {reason}", 1.0)
        for path, reason in evaluation.metrics.unreadable.values()
    ]
    return sorted(rows, key=lambda row: (-row.confidence, row.path))


def _mistakes(evaluation: Evaluation) -> Iterator[Row]:
    """Images whose label the model contradicts."""
    names = evaluation.release.classes
    for mistake in evaluation.metrics.doubtful:
        if isinstance(mistake, MulticlassMistake):
            label, suggested = names[mistake.label], names[mistake.predicted]
        else:
            label, suggested = (
                SEPARATOR.join(names[k] for k in sorted(index for index, _ in classes))
                for classes in (mistake.label, mistake.predicted)
            )
        reason = "the model predicts another label"
        yield Row(mistake.path, label, suggested, reason, round(mistake.doubt, 4))


def _conflicts(data: str, task: str) -> Iterator[Row]:
    """Both images of each pair that looks the same and has different labels.

    Of images with several labels the pair does not tell which are right, so none is suggested.
    """
    seen = set[str]()
    for pair in parquet.read_table(storage.join(data, DUPLICATES)).to_pylist():
        if pair["label"] == pair["other_label"]:
            continue
        kind = "nearly identical" if pair["distance"] else "identical"
        confidence = round((1 - pair["distance"] / HASH_BITS) / PAIR, 4)
        for one, other in (("", "other_"), ("other_", "")):
            path, label = pair[f"{one}path"], pair[f"{one}label"]
            if path not in seen:
                seen.add(path)
                suggested = "" if task == MULTILABEL else pair[f"{other}label"]
                reason = f"{kind} to {pair[f'{other}path']}"
                yield Row(path, label, suggested, reason, confidence)


def _quarantined(data: str) -> Iterator[Row]:
    """Images that packing could not read."""
    for row in parquet.read_table(storage.join(data, QUARANTINE)).to_pylist():
        yield Row(row["path"], "", "", f"cannot be read: {row['reason']}", 1.0)
