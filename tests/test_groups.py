"""Columns of a source are kept, and evaluations name the group of images with the lowest top-1."""

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.releases import released
from support.sources import files, write_hugging_face

from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import DatasetError
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.groups import (
    GROUP,
    MIN_IMAGES,
    WITHOUT,
    GroupScores,
    _scores,
    check_group_column,
    group_scores,
)
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.packing import image_index
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack


def write_csv(images: Path, out: Path) -> str:
    """A table with two columns beside the label; every tenth image has no site."""
    table = out / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "camera", "site"])
        for number, path in enumerate(files(images)):
            site = "" if number % 10 == 0 else f"site {number % 2}, north"
            writer.writerow([path, path.parent.name, number % 3, site])
    return str(table)


def kept(data: str) -> dict[str, dict[str, str]]:
    """Column → the value of each image, by its path."""
    index = image_index.read_image_index(data)
    names = index["path"].to_pylist()
    return {
        column: dict(zip(names, index[column].to_pylist(), strict=True))
        for column in image_index.kept_columns(index)
    }


def test_kept_columns_are_the_table_s(photographs: Path, tmp_path: Path) -> None:
    table, data = write_csv(photographs, tmp_path), str(tmp_path / "data")
    pack(table, data, Packing(keep_columns="camera, site", eval_fraction=0.3))
    rows = {row["path"]: row for row in csv.DictReader(Path(table).open())}
    result = kept(data)
    assert sorted(result) == ["camera", "site"]
    assert result["camera"] == {name: row["camera"] for name, row in rows.items()}
    assert result["site"] == {name: row["site"] or None for name, row in rows.items()}


def test_columns_are_added_to_a_complete_data_set_without_packing_again(
    photographs: Path, tmp_path: Path
) -> None:
    table, data = write_csv(photographs, tmp_path), str(tmp_path / "data")
    first = pack(table, data, Packing())
    assert kept(data) == {}
    shards = {path: path.stat().st_mtime_ns for path in Path(data).rglob("0*.parquet")}
    again = pack(table, data, Packing(keep_columns="site"))
    assert again.fingerprint == first.fingerprint
    assert list(kept(data)) == ["site"]
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    pack(table, data, Packing(keep_columns="camera"))
    assert sorted(kept(data)) == ["camera", "site"]
    Path(table).write_text(Path(table).read_text().replace("site 1, north", "site 9, north"))
    pack(table, data, Packing(keep_columns="site"))
    assert "site 9, north" in kept(data)["site"].values()
    assert "site 1, north" not in kept(data)["site"].values()


def test_columns_are_kept_on_s3_too(photographs: Path, tmp_path: Path, s3: str) -> None:
    table, data = write_csv(photographs, tmp_path), f"{s3}/kept"
    pack(table, data, Packing(keep_columns="site"))
    pack(table, data, Packing(keep_columns="camera"))
    assert set(check_group_column(data, "camera")[GROUP].to_pylist()) == {"0", "1", "2"}
    assert sorted(kept(data)) == ["camera", "site"]


def test_a_data_set_that_was_packed_by_groups_before_they_were_kept_gets_the_column(
    photographs: Path, tmp_path: Path
) -> None:
    table, data = write_csv(photographs, tmp_path), str(tmp_path / "data")
    grouped = Packing(group_column="camera", eval_fraction=0.4)
    pack(table, data, grouped)
    expected, file = kept(data), Path(data) / image_index.NAME
    pq.write_table(pq.read_table(file).drop_columns("camera"), file)
    pack(table, data, grouped)
    assert kept(data) == expected
    file.unlink()
    with pytest.raises(DatasetError, match="into another --out"):
        pack(table, data, replace(grouped, keep_columns="site"))
    pack(table, data, grouped)  # as before, without the file


def test_a_column_may_have_the_name_of_one_of_ours(photographs: Path, tmp_path: Path) -> None:
    table, data = Path(write_csv(photographs, tmp_path)), str(tmp_path / "data")
    table.write_text(table.read_text().replace("camera", "width"))
    pack(str(table), data, Packing(keep_columns="width"))
    index = check_group_column(data, "width")
    assert set(index[GROUP].to_pylist()) == {"0", "1", "2"}
    assert all(type(width) is int for width in index["width"].to_pylist())


def test_a_key_that_no_sample_has_is_refused(photographs: Path, tmp_path: Path) -> None:
    tar = tmp_path / "tars/0.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as archive:
        for path in files(photographs):
            archive.add(path, f"{path.parent.name}-{path.stem}{path.suffix}")
            record = json.dumps({"label": path.parent.name, "camera": path.stem}).encode()
            member = tarfile.TarInfo(f"{path.parent.name}-{path.stem}.json")
            member.size = len(record)
            archive.addfile(member, io.BytesIO(record))
    with pytest.raises(DatasetError, match="no value of 'camara' for any image"):
        pack(str(tar.parent), str(tmp_path / "data"), Packing(keep_columns="camara"))
    pack(str(tar.parent), str(tmp_path / "data"), Packing(keep_columns="camera"))
    assert {len(value) for value in kept(str(tmp_path / "data"))["camera"].values()} == {1}


def test_the_column_of_groups_is_kept_and_columns_of_parquet_too(
    photographs: Path, tmp_path: Path
) -> None:
    source, data = write_hugging_face(photographs, tmp_path), str(tmp_path / "out")
    pack(f"{source}/data", data, Packing(group_column="camera"))
    index = image_index.read_image_index(data)
    rows = pq.read_table(next(Path(source, "data").glob("*.parquet"))).to_pylist()
    cameras = {row["image"]["path"]: row["camera"] for row in rows}
    paths = [path.rpartition("/")[2] for path in index["path"].to_pylist()]
    assert index["camera"].to_pylist() == [cameras[path] for path in paths]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep_columns": "colour"}, "has no column 'colour', only path, label, camera, site"),
        ({"keep_columns": "site", "in_place": True}, "omit --keep-columns"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(
    photographs: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    table = write_csv(photographs, tmp_path)
    with pytest.raises(DatasetError, match=reason):
        pack(table, str(tmp_path / "data"), Packing(**options))


def test_class_folders_have_no_columns(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--keep-columns needs a table"):
        pack(str(photographs), str(tmp_path / "data"), Packing(keep_columns="site"))


# --- groups of an evaluation


def evaluation(data: str, hits: list[bool], unreadable: dict[int, tuple[str, str]]) -> Evaluation:
    """What group_scores reads of an evaluation."""
    metrics = cast(
        MulticlassMetrics,
        SimpleNamespace(
            hits=np.array(hits), unreadable=unreadable, processed=len(hits) + len(unreadable)
        ),
    )
    return Evaluation(cast(Any, None), manifests.load(data), data, "eval", metrics)


def test_scores_are_those_of_the_group_s_readable_images(
    photographs: Path, tmp_path: Path
) -> None:
    table, data = write_csv(photographs, tmp_path), str(tmp_path / "data")
    pack(table, data, Packing(keep_columns="site", eval_fraction=0.5))
    index = check_group_column(data, "site")
    rows = [row for row in index.to_pylist() if row["split"] == "eval"]
    bad, *readable = rows
    hits = [number % 3 == 0 for number in range(len(readable))]
    result = group_scores(evaluation(data, hits, {7: (bad["path"], "torn")}), index, "site")
    expected: dict[str, list[bool]] = {}
    for row, hit in zip(readable, hits, strict=True):
        expected.setdefault(row["site"] or WITHOUT, []).append(hit)
    assert {s.group: (s.images, s.top1) for s in result.scores} == {
        group: (len(of_group), pytest.approx(np.mean(of_group)))
        for group, of_group in expected.items()
    }
    for score in result.scores:
        assert score.interval and score.interval[0] <= score.top1 <= score.interval[1]


def test_a_small_group_is_the_worst_only_if_all_are_small() -> None:
    names = ["big"] * 40 + ["other"] * 20 + ["tiny"] * (MIN_IMAGES - 1)
    hits = np.array([True] * 30 + [False] * 10 + [True] * 20 + [False] * (MIN_IMAGES - 1))
    assert [score.group for score in _scores(names, hits)] == ["big", "other", "tiny"]
    tiny = _scores(["a", "a", "b"], np.array([True, True, False]))
    assert GroupScores("camera", tiny).worst.group == "b"


def test_an_unknown_column_says_how_to_add_it(photographs: Path, tmp_path: Path) -> None:
    table, data = write_csv(photographs, tmp_path), str(tmp_path / "data")
    pack(table, data, Packing(keep_columns="site"))
    with pytest.raises(DatasetError, match=r"only site: run `pack` again .*--keep-columns camera"):
        check_group_column(data, "camera")


@pytest.mark.ray
@pytest.mark.long
def test_an_evaluation_names_the_worst_group(
    cluster: None, photographs: Path, tmp_path: Path
) -> None:
    table, data = write_csv(photographs, tmp_path), str(tmp_path / "data")
    pack(table, data, Packing(keep_columns="camera", eval_fraction=0.5))
    named = replace(manifests.load(data), classes=("0", "1", "2"))
    manifests.write(named, data)
    page = tmp_path / "page.html"
    answer = evaluate_job(
        ["--model", released(tmp_path).uri, "--data", data, "--group-column", "camera",
         "--workers", "1", "--report", str(page)]
    )  # fmt: skip
    groups = answer["groups"]
    assert groups["column"] == "camera"
    assert groups["groups"] == 3
    assert sum(row["images"] for row in groups["worst"]) == answer["images"]
    right = sum(row["top1"] * row["images"] for row in groups["worst"])
    assert right / answer["images"] == pytest.approx(answer["eval_top1"])
    text = " ".join(page.read_text().split())
    assert "Groups by camera" in text
    assert f'title="{groups["worst"][0]["group"]}"' in text
    assert json.loads(json.dumps(answer)) == answer
