"""Corrections: what `evaluate` proposes, and what `pack` makes of the decisions."""

import csv
import io
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.releases import released
from support.sources import files

from effnet_ray import storage
from effnet_ray.cli.output_files import refuse_filled_in
from effnet_ray.cli.pack import pack_job
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import DatasetError
from effnet_ray.inference.corrections import propose, write_corrections
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.multiclass import MulticlassMetrics, score_images
from effnet_ray.packing import corrections
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack

HEADER = "path,label,suggested,reason,confidence,decision"


@pytest.fixture
def source(photographs: Path, tmp_path: Path) -> Path:
    """The photographs, with a file that is no picture."""
    shutil.copytree(photographs, tmp_path / "source")
    (tmp_path / "source/roof/bad.jpg").write_bytes(b"no picture")
    return tmp_path / "source"


def write(tmp_path: Path, *rows: str, header: str = HEADER) -> str:
    (tmp_path / "decided.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    return str(tmp_path / "decided.csv")


def labels(data: str) -> dict[str, str]:
    """Path → class of every packed image."""
    classes, result = manifests.load(data).classes, {}
    for path in sorted(Path(data).glob("*/*.parquet")):
        for row in pq.read_table(path, columns=["image", "label"]).to_pylist():
            result[row["image"]["path"]] = classes[row["label"]]
    return result


def test_decisions_drop_keep_and_relabel_and_are_kept_with_the_data(
    source: Path, tmp_path: Path
) -> None:
    table = write(
        tmp_path,
        "roof/bad.jpg,roof,,cannot be read,1,drop,ann,2026-11-30",
        "roof/6.jpg,roof,garden,model,0.9,relabel:garden,ann,2026-11-30",
        "garden/5.jpg,garden,roof,model,0.8, keep ,bob,2026-11-30",
        "dahlia/7.png,dahlia,roof,model,0.7,,,",
        header=f"{HEADER},who,when",
    )
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    plain = pack(str(source), before)
    line = pack_job(["--source", str(source), "--out", after, "--corrections", table])
    expected = labels(before) | {"roof/6.jpg": "garden"}
    assert labels(after) == expected
    assert splits(after) == splits(before)
    assert line["fingerprint"] != plain.fingerprint
    assert (line["seen"], line["quarantined"], line["set_aside"]) == (25, 0, 1)
    kept = list(csv.DictReader(io.StringIO((Path(after) / corrections.NAME).read_text())))
    assert [(row["path"], row["decision"].strip(), row["who"]) for row in kept] == [
        ("roof/bad.jpg", "drop", "ann"),
        ("roof/6.jpg", "relabel:garden", "ann"),
        ("garden/5.jpg", "keep", "bob"),
    ]
    assert len(str(manifests.load(after).made_from["corrections"])) == 64


def test_packing_with_the_same_decisions_again_is_reported_not_redone(
    source: Path, tmp_path: Path
) -> None:
    table, out = write(tmp_path, "roof/6.jpg,,,,,relabel:garden"), str(tmp_path / "out")
    manifest = pack(str(source), out, Packing(corrections=table))
    assert pack(str(source), out, Packing(corrections=table)) == manifest
    with pytest.raises(DatasetError, match="contains another data set"):
        pack(str(source), out)
    keep = write(tmp_path, "roof/6.jpg,,,,,relabel:garden", "roof/5.jpg,,,,,keep")
    with pytest.raises(DatasetError, match="was packed with corrections"):
        pack(str(source), out, Packing(corrections=keep))


def test_a_multilabel_image_gets_several_classes(source: Path, tmp_path: Path) -> None:
    images = [path for path in files(source) if path.name != "bad.jpg"]
    lines = [f"{path.relative_to(source)},{path.parent.name}|any" for path in images]
    (source / "table.csv").write_text("\n".join(["path,label", *lines]))
    table = write(tmp_path, "roof/6.jpg,,,,,relabel: garden|dahlia")
    packing = Packing(task="multilabel", corrections=table)
    pack(str(source / "table.csv"), str(tmp_path / "out"), packing)
    actual = [
        row["label"]
        for path in (tmp_path / "out").glob("*/*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["image"]["path"] == "roof/6.jpg"
    ]
    assert actual == [[1, 2]]  # any, dahlia, garden, roof


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["roof/6.jpg,,,,,delete"], r"decision 'delete' for roof/6.jpg: expected drop, keep or"),
        (["roof/6.jpg,,,,,relabel:"], r"there is no class '': expected dahlia or garden"),
        (["roof/6.jpg,,,,,relabel"], r"expected drop, keep or relabel:CLASS"),
        (["roof/6.jpg,,,,,relabel:cat"], r"there is no class 'cat': expected dahlia or garden"),
        (["roof/99.jpg,,,,,drop"], r"1 images that the source does not have, .* roof/99.jpg"),
        (["roof/6.jpg,,,,,drop", "roof/6.jpg,,,,,keep"], "decide once for each image"),
    ],
)
def test_unclear_decisions_are_refused(
    source: Path, tmp_path: Path, rows: list[str], message: str
) -> None:
    table = write(tmp_path, *rows)
    with pytest.raises(DatasetError, match=message):
        pack(str(source), str(tmp_path / "out"), Packing(corrections=table))
    assert not (tmp_path / "out").exists()


def test_a_file_without_decisions_is_refused_by_its_columns(source: Path, tmp_path: Path) -> None:
    table = write(tmp_path, "roof/6.jpg,drop", header="path,verdict")
    with pytest.raises(DatasetError, match="needs one column 'decision': expected path, label"):
        pack(str(source), str(tmp_path / "out"), Packing(corrections=table))
    with pytest.raises(DatasetError, match="--in-place leaves the shards"):
        Packing(corrections=table, in_place=True)


def splits(data: str) -> dict[str, str]:
    """Path → split of every packed image."""
    return {
        row["image"]["path"]: path.parent.name
        for path in Path(data).glob("*/*.parquet")
        for row in pq.read_table(path, columns=["image"]).to_pylist()
    }


def test_other_images_stay_in_their_splits(source: Path, tmp_path: Path) -> None:
    """Else a release would be judged on images that it was trained on."""
    pack(str(source), str(tmp_path / "before"))
    rows = [f"roof/{n}.jpg,,,,,drop" for n in (0, 2)] + ["dahlia/0.jpg,,,,,relabel:garden"]
    existing = {str(path.relative_to(source)) for path in files(source)}
    rows = [row for row in rows if row.split(",")[0] in existing]
    assert len(rows) >= 2
    pack(str(source), str(tmp_path / "after"), Packing(corrections=write(tmp_path, *rows)))
    after = splits(str(tmp_path / "after"))
    assert after.items() <= splits(str(tmp_path / "before")).items()


@pytest.mark.parametrize("texts", [["Drop", " drop "], ["relabel:garden", "Relabel : garden"]])
def test_a_decision_may_be_spelled_in_any_way_and_stand_twice(
    source: Path, tmp_path: Path, texts: list[str]
) -> None:
    table = write(tmp_path, *(f"roof/6.jpg,,,,,{text}" for text in texts))
    (decision,) = corrections.read_corrections(table).decisions.values()
    assert decision in ("drop", "relabel:garden")
    pack(str(source), str(tmp_path / "out"), Packing(corrections=table))


def test_the_order_of_rows_does_not_matter(source: Path, tmp_path: Path) -> None:
    rows = ["roof/6.jpg,,,,,drop", "roof/5.jpg,,,,,keep"]
    manifests_of = {
        str(pack(str(source), str(tmp_path / "out"), Packing(corrections=write(tmp_path, *each))))
        for each in (rows, rows[::-1])
    }
    assert len(manifests_of) == 1


def test_a_file_without_any_decision_changes_nothing(source: Path, tmp_path: Path) -> None:
    plain = pack(str(source), str(tmp_path / "plain"))
    packed = pack(str(source), str(tmp_path / "out"), Packing(corrections=write(tmp_path)))
    assert packed.fingerprint == plain.fingerprint


def test_comments_may_have_line_breaks_and_other_encodings_are_refused(
    source: Path, tmp_path: Path
) -> None:
    rows = [f'x{n}.jpg,,,,,,"a\nlong\ncomment {"x" * 200}"' for n in range(9000)]
    table = write(tmp_path, "roof/6.jpg,,,,,drop,", *rows, header=f"{HEADER},comment")
    assert corrections.read_corrections(table).decisions == {"roof/6.jpg": "drop"}
    (tmp_path / "latin.csv").write_bytes("path,decision,Prüfer\na,drop,b".encode("cp1252"))
    with pytest.raises(DatasetError, match="save it as UTF-8"):
        corrections.read_corrections(str(tmp_path / "latin.csv"))
    (tmp_path / "twice.csv").write_text("path,decision,decision\na,drop,keep")
    with pytest.raises(DatasetError, match="needs one column 'decision'"):
        corrections.read_corrections(str(tmp_path / "twice.csv"))


def test_a_class_without_images_is_refused_unless_allowed(source: Path, tmp_path: Path) -> None:
    roofs = [path for path in files(source) if path.parent.name == "roof"]
    table = write(tmp_path, *(f"{path.relative_to(source)},,,,,drop" for path in roofs))
    with pytest.raises(DatasetError, match="leaves no image of class 'roof'"):
        pack(str(source), str(tmp_path / "out"), Packing(corrections=table))
    packing = Packing(corrections=table, allow_empty_classes=True)
    assert pack(str(source), str(tmp_path / "out"), packing).images == {"train": 12, "eval": 4}


def test_an_interrupted_packings_corrections_are_not_kept(source: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        raise Killed

    table, out = write(tmp_path, "roof/6.jpg,,,,,drop"), tmp_path / "out"
    with pytest.raises(Killed):
        pack(str(source), str(out), Packing(corrections=table), on_progress=kill)
    assert (out / corrections.NAME).exists()
    pack(str(source), str(out))
    assert not (out / corrections.NAME).exists()


def test_a_file_with_decisions_is_not_written_over(tmp_path: Path) -> None:
    table = write(tmp_path, "roof/6.jpg,,,,,drop")
    with pytest.raises(DatasetError, match="has values in the column 'decision', which would be"):
        refuse_filled_in(table, "decision")
    refuse_filled_in(write(tmp_path, "roof/6.jpg,,,,,"), "decision")
    refuse_filled_in(str(tmp_path / "new.csv"), "decision")


# --- proposals


def evaluated(data: str, tmp_path: Path, wrong: set[str]) -> Evaluation:
    """A model that is sure of every image's class, which is another one for those in `wrong`."""
    manifest, release = manifests.load(data), released(tmp_path / "release")
    names = labels(data)
    paths = sorted(names)
    label = np.asarray([manifest.classes.index(names[path]) for path in paths])
    seen = np.asarray([(k + (path in wrong)) % 3 for k, path in zip(label, paths, strict=True)])
    logits = np.eye(3)[seen] * np.linspace(6, 9, len(paths))[:, None]
    logits[:, 2] += 5  # a second class is probable too, so that margin and doubt differ
    metrics = MulticlassMetrics(3, examples=2, mistakes=100)
    nothing = np.asarray([""] * len(paths), object)
    columns: dict[str, Any] = {"image": np.arange(len(paths)), "error": nothing}
    columns |= {"path": np.asarray(paths, object), "thumbnail": nothing, "map": nothing}
    metrics.add(score_images(logits, label) | columns)
    return Evaluation(replace(release, classes=manifest.classes), manifest, data, "eval", metrics)


def test_errors_duplicates_and_unreadable_images_are_proposed_and_can_be_applied(
    source: Path, tmp_path: Path
) -> None:
    shutil.copy(source / "roof/1.jpg", source / "garden/copy.jpg")
    data = str(tmp_path / "data")
    pack(str(source), data)
    wrong = {"dahlia/2.jpg", "dahlia/3.jpg", "garden/4.jpg", "roof/5.jpg"}
    wrong &= labels(data).keys()
    evaluation = evaluated(data, tmp_path, wrong)
    everything = propose(evaluation)
    assert [row.confidence for row in everything] == sorted(
        (row.confidence for row in everything), reverse=True
    )
    rows = {row.path: row for row in everything if "duplicate" not in row.reason}
    assert wrong < rows.keys() and len(evaluation.metrics.label_errors) == 2
    for path in wrong:
        assert rows[path].label != rows[path].suggested and rows[path].confidence > 0.9
    assert rows["roof/bad.jpg"].reason.startswith("cannot be read")
    pair = rows["garden/copy.jpg"], rows["roof/1.jpg"]
    assert [(row.label, row.suggested) for row in pair] == [("garden", "roof"), ("roof", "garden")]
    assert all(row.reason.startswith("identical to") and row.confidence == 0.5 for row in pair)
    uri = str(tmp_path / "proposed.csv")
    assert write_corrections(evaluation, uri) == len(propose(evaluation))
    text = Path(uri).read_text()
    assert text.splitlines()[0].replace('"', "") == HEADER
    assert Counter(row["decision"] for row in csv.DictReader(io.StringIO(text))).keys() == {""}
    decided = text.splitlines()
    for at, line in enumerate(decided):
        if line.startswith('"roof/bad.jpg"'):
            decided[at] = line.removesuffix('""') + '"drop"'
    (tmp_path / "decided.csv").write_text("\n".join(decided))
    packing = Packing(corrections=str(tmp_path / "decided.csv"))
    assert pack(str(source), str(tmp_path / "clean"), packing).quarantined == 0


def test_proposals_can_be_written_to_a_bucket(source: Path, tmp_path: Path, s3: str) -> None:
    data = str(tmp_path / "data")
    pack(str(source), data)
    write_corrections(evaluated(data, tmp_path, set()), f"{s3}/proposed.csv")
    assert b"roof/bad.jpg" in storage.read_bytes(f"{s3}/proposed.csv")
