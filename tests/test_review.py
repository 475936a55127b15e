"""`predict --review` chooses uncertain images of different kinds."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effnet_ray.cli.predict import predict_job
from effnet_ray.errors import DatasetError, RecipeError
from effnet_ray.inference.review import FILE, check_source, write_review


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 files that stand for images."""
    (tmp_path / "photos").mkdir()
    for number in range(60):
        (tmp_path / f"photos/a#{number:02d}.jpg").write_bytes(b"1")
    return tmp_path / "photos"


def write_predictions(
    folder: Path, margins: np.ndarray, kinds: np.ndarray, *, embeddings: bool = True
) -> None:
    """Two parts of predictions; images of a kind have nearly the same features."""
    folder.mkdir()
    random = np.random.default_rng(0)
    centres = random.normal(size=(int(kinds.max()) + 1, 16))
    for part, rows in enumerate(np.array_split(np.arange(len(margins)), 2)):
        features = centres[kinds[rows]] + random.normal(scale=0.01, size=(len(rows), 16))
        columns = {
            "path": [f"a#{row:02d}.jpg" for row in rows],
            "labels": [["cat", "dog"] for _ in rows],
            "probabilities": [[0.5 + m / 2, 0.5 - m / 2] for m in margins[rows]],
        }
        if embeddings:
            values = pa.array(features.astype(np.float16).reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, 16)
        pq.write_table(pa.table(columns), folder / f"part-{part:05d}.parquet")


def rows_of(uri: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(uri).read_text())))


def test_the_most_uncertain_image_of_each_kind_is_chosen(source: Path, tmp_path: Path) -> None:
    margins, kinds = np.linspace(0.9, 0.1, 60), np.arange(60) % 4
    kinds[-5:] = 0  # the five most uncertain ones are of one kind
    write_predictions(tmp_path / "out", margins, kinds)
    uri, count = write_review(str(tmp_path / "out"), str(source), 4, multilabel=False)
    assert uri == str(tmp_path / "out" / FILE) and count == 4
    rows = rows_of(uri)
    chosen = [int(Path(row["path"]).stem[2:]) for row in rows]
    assert sorted(kinds[chosen]) == [0, 1, 2, 3] and chosen[0] == 59
    assert all(int(k) == max(np.flatnonzero(kinds == kinds[k])) for k in chosen)
    values = [float(row["margin"]) for row in rows]
    assert values == sorted(values)
    assert all(Path(row["path"]).exists() and row["label"] == "" for row in rows)
    assert {(row["predicted"], row["second"]) for row in rows} == {("cat", "dog")}


def test_only_uncertain_images_are_candidates(source: Path, tmp_path: Path) -> None:
    margins, kinds = np.full(60, 0.99), np.arange(60)
    margins[10:30] = 0.01
    write_predictions(tmp_path / "out", margins, kinds)
    uri, _ = write_review(str(tmp_path / "out"), str(source), 2, multilabel=False)
    assert all(10 <= int(Path(row["path"]).stem[2:]) < 30 for row in rows_of(uri))


def test_the_choice_is_repeatable_and_no_larger_than_the_source(
    source: Path, tmp_path: Path
) -> None:
    write_predictions(tmp_path / "out", np.linspace(0, 1, 60), np.arange(60) % 7)
    texts = set()
    for _ in range(2):
        uri, _ = write_review(str(tmp_path / "out"), str(source), 5, multilabel=False)
        texts.add(Path(uri).read_text())
    assert len(texts) == 1
    assert write_review(str(tmp_path / "out"), str(source), 500, multilabel=False)[1] == 60


def test_several_labels_are_as_uncertain_as_the_least_certain_one(
    source: Path, tmp_path: Path
) -> None:
    margins = np.linspace(0.9, 0.1, 60)
    write_predictions(tmp_path / "out", margins, np.zeros(60, int))
    uri, _ = write_review(str(tmp_path / "out"), str(source), 1, multilabel=True)
    (row,) = rows_of(uri)
    assert row["path"].endswith("59.jpg") and float(row["margin"]) == pytest.approx(0.05)


def test_predictions_without_features_or_margins_are_refused(
    source: Path, packed: Path, tmp_path: Path
) -> None:
    write_predictions(tmp_path / "out", np.ones(60), np.zeros(60, int), embeddings=False)
    with pytest.raises(DatasetError, match="has no embeddings: predict with --embeddings"):
        write_review(str(tmp_path / "out"), str(source), 3, multilabel=False)
    with pytest.raises(DatasetError, match="has its images in Parquet: --review needs image"):
        check_source(str(packed))
    arguments = ["--model", "a@v1", "--source", str(source), "--out", str(tmp_path / "new")]
    with pytest.raises(RecipeError, match="set --top 2 or more"):
        predict_job([*arguments, "--review", "3", "--top", "1"])
    with pytest.raises(RecipeError, match="review is -1"):
        predict_job([*arguments, "--review", "-1"])
