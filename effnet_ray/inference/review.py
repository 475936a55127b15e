"""Chooses which predicted images to label next: the most uncertain ones, of different kinds.

Uncertain images of one kind teach a model the same thing. So the images with the least margin are
clustered by their features, and of each cluster the most uncertain one is taken (cluster-margin,
Citovsky et al. 2021, "Batch Active Learning at Scale", in its simplest form).
"""

import csv
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.errors import DatasetError, RecipeError
from effnet_ray.inference.image_sources import find_images
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

FILE = "_review.csv"
"""In the folder of the predictions; readers of Parquet folders skip it."""
COLUMNS = ("path", "label", "predicted", "second", "margin")
POOL = 10
"""Candidates per image that is chosen. Chosen, not measured."""
MULTILABEL_THRESHOLD = 0.5


class _Candidate(NamedTuple):
    """An uncertain image: its part, its row in the part, and its margin."""

    part: str
    row: int
    margin: float


def write_review(out: str, source: str, count: int, *, multilabel: bool) -> tuple[str, int]:
    """Write the `count` images to label next, the most uncertain first, as a CSV.

    `out` is a folder of predictions with embeddings, made of `source`. The column `label` is
    empty: fill it in, and the file is a table for `pack`. Returns its URI and number of rows.
    Raises DatasetError for predictions without embeddings or of one class per image only.
    """
    candidates = _find_candidates(out, count * POOL, multilabel=multilabel)
    tables = {part: parquet.read_table(storage.join(out, part)) for part in _parts(candidates)}
    features = np.stack([_embedding(tables[c.part], c, out) for c in candidates])
    chosen = [candidates[index] for index in _spread(features, count)]
    folder = find_images(source).uri
    rows = []
    for candidate in chosen:
        row = tables[candidate.part].slice(candidate.row, 1).to_pylist()[0]
        path, labels = row["path"], [*row["labels"], ""]
        uri = path if "#" in path else storage.join(folder, path)
        rows.append((uri, "", labels[0], labels[1], round(candidate.margin, 4)))
    uri = storage.join(out, FILE)
    sink = io.StringIO()
    csv.writer(sink).writerows([COLUMNS, *rows])
    storage.write_bytes(uri, sink.getvalue().encode())
    return uri, len(rows)


def check_top(top: int) -> None:
    """Raise RecipeError if predictions of so many classes have no margin."""
    if top == 1:
        raise RecipeError("--review needs the margin between two classes: set --top 2 or more")


def _find_candidates(out: str, count: int, *, multilabel: bool) -> list[_Candidate]:
    """The rows of least margin, the least first; equal ones in the order of the files."""
    candidates: list[_Candidate] = []
    for part in sorted(storage.sizes(out)):
        if not part.startswith("part-"):
            continue
        table = parquet.read_table(storage.join(out, part))
        margins = _margins(table, multilabel=multilabel)
        candidates += [_Candidate(part, row, value) for row, value in enumerate(margins.tolist())]
        candidates = sorted(candidates, key=lambda candidate: candidate.margin)[:count]
    return candidates


def _margins(table: pa.Table, *, multilabel: bool) -> npt.NDArray[np.float64]:
    """How certain each row's prediction is, 0 to 1."""
    probabilities = column_values(table, "probabilities")
    if multilabel:  # the distance of the least certain decision to the threshold
        return np.asarray(
            [min(abs(p - MULTILABEL_THRESHOLD) for p in values) for values in probabilities]
        )
    return np.asarray([values[0] - values[1] for values in probabilities])


def _parts(candidates: list[_Candidate]) -> list[str]:
    return sorted({candidate.part for candidate in candidates})


def _embedding(table: pa.Table, candidate: _Candidate, out: str) -> npt.NDArray[np.float32]:
    """Features of a row, of length 1."""
    if "embedding" not in table.column_names:
        raise DatasetError(f"{out} has no embeddings: predict with --embeddings")
    vector = np.asarray(table["embedding"][candidate.row].as_py(), np.float32)
    unit: npt.NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit


def _spread(features: npt.NDArray[np.float32], count: int) -> list[int]:
    """Rows [n, F], the most uncertain first: the first of each cluster, then the first others."""
    from sklearn.cluster import KMeans  # the import takes a second

    if len(features) <= count:
        return list(range(len(features)))
    clusters = KMeans(n_clusters=count, n_init=1, random_state=0).fit_predict(features)
    first = np.unique(clusters, return_index=True)[1].tolist()
    others = [row for row in range(len(features)) if row not in set(first)]
    return sorted([*first, *others[: count - len(first)]])
