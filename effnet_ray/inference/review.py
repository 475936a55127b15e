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


class _Image(NamedTuple):
    """A candidate's prediction."""

    path: str
    labels: tuple[str, str]
    """The two most probable classes; the second may be empty."""
    features: npt.NDArray[np.float32]
    """Of length 1."""


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
    images = _read_images(out, candidates)
    chosen = _spread(np.stack([image.features for image in images]), count)
    folder = find_images(source).uri
    rows = [
        (
            storage.join(folder, images[at].path),
            "",
            *images[at].labels,
            round(candidates[at].margin, 4),
        )
        for at in chosen
    ]
    uri = storage.join(out, FILE)
    sink = io.StringIO()
    csv.writer(sink).writerows([COLUMNS, *rows])
    storage.write_bytes(uri, sink.getvalue().encode())
    return uri, len(rows)


def check_source(source: str) -> None:
    """Raise DatasetError for images that are not files, which a table could not name."""
    images = find_images(source)
    if images.manifest or any(unit.shard for unit in images.units):
        raise DatasetError(
            f"{source} has its images in Parquet: --review needs image files, to name them in its "
            "table"
        )


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


def _read_images(out: str, candidates: list[_Candidate]) -> list[_Image]:
    """The candidates' predictions, in their order; one part is in memory at a time."""
    images = dict[_Candidate, _Image]()
    for part in sorted({candidate.part for candidate in candidates}):
        table = parquet.read_table(storage.join(out, part))
        if "embedding" not in table.column_names:
            raise DatasetError(f"{out} has no embeddings: predict with --embeddings")
        chosen = [candidate for candidate in candidates if candidate.part == part]
        rows = table.take([candidate.row for candidate in chosen]).to_pylist()
        for candidate, row in zip(chosen, rows, strict=True):
            vector = np.asarray(row["embedding"], np.float32)
            first, second = [*row["labels"], ""][:2]
            unit = vector / max(float(np.linalg.norm(vector)), 1e-6)
            images[candidate] = _Image(row["path"], (first, second), unit)
    return [images[candidate] for candidate in candidates]


def _spread(features: npt.NDArray[np.float32], count: int) -> list[int]:
    """Rows [n, F], the most uncertain first: the first of each cluster, then the first others."""
    from sklearn.cluster import KMeans  # the import takes a second

    if len(features) <= count:
        return list(range(len(features)))
    clusters = KMeans(n_clusters=count, n_init=1, random_state=0).fit_predict(features)
    first = np.unique(clusters, return_index=True)[1].tolist()
    others = sorted(set(range(len(features))) - set(first))
    return sorted([*first, *others[: count - len(first)]])
