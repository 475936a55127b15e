"""Packing: deterministic, mixed, complete; what it refuses and what it sets aside."""

import hashlib
import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import DatasetError
from effnet_ray.packing import ray_map, report
from effnet_ray.packing.listing import WORK_FOLDER
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.packing.results import DUPLICATES, QUARANTINE


@pytest.fixture
def images(photographs: Path, tmp_path: Path) -> Path:
    """The photographs, to damage."""
    return Path(shutil.copytree(photographs, tmp_path / "images"))


def rows(folder: Path, split: str = "*") -> list[dict[str, Any]]:
    """Every row of the shards of a data set, or of one split."""
    files = sorted(folder.glob(f"{split}/*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def write_colours(folder: Path, classes: int, each: int) -> None:
    """Class folders of one-coloured 2×2 images, each another colour."""
    for number in range(classes * each):
        label, index = divmod(number, each)
        image = Image.new("RGB", (2, 2), (label, index // 256, index % 256))
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(folder / str(label) / f"{index}.bmp")


# --- classes


def test_a_class_that_no_image_trains_is_refused_unless_allowed(
    images: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for split in ("train", "val"):
        shutil.copytree(images, source / split)
    shutil.rmtree(source / "train/roof")
    with pytest.raises(DatasetError, match=r"no train images of class 'roof', only eval"):
        pack(str(source), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    packing = Packing(allow_empty_classes=True, duplicates="refuse")
    for file in (source / "val").rglob("*.*"):  # other images than the train split's
        Image.open(file).rotate(90).save(file)
    manifest = pack(str(source), str(tmp_path / "out"), packing)
    assert manifest.classes == ("dahlia", "garden", "roof")
    counts = report.load(str(tmp_path / "out")).images
    assert counts["train"][2] == 0 < counts["eval"][2]


def test_a_class_of_which_no_image_can_be_read_is_refused_unless_allowed(
    images: Path, tmp_path: Path
) -> None:
    for file in (images / "roof").iterdir():
        file.write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=r"no train image of class 'roof' can be read"):
        pack(str(images), str(out))
    assert (out / QUARANTINE).exists() and not (out / manifests.NAME).exists()
    written = {file: file.stat().st_mtime_ns for file in out.glob("train/*.parquet")}
    manifest = pack(str(images), str(out), Packing(allow_empty_classes=True))
    assert manifest.quarantined == 8 and manifest.classes == ("dahlia", "garden", "roof")
    assert pack(str(images), str(out)) == manifest  # the flag changes nothing that is written
    assert written and all(file.stat().st_mtime_ns == time for file, time in written.items())


def test_a_source_without_any_train_image_is_refused_before_anything_is_written(
    images: Path, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    images.rename(tmp_path / "source/val")
    packing = Packing(allow_empty_classes=True)
    with pytest.raises(DatasetError, match="has no train images: add a train split"):
        pack(str(tmp_path / "source"), str(tmp_path / "out"), packing)
    assert not (tmp_path / "out").exists()


def test_a_source_of_which_no_image_can_be_read_is_refused(images: Path, tmp_path: Path) -> None:
    for file in images.rglob("*.*"):
        file.write_bytes(b"no image")
    packing = Packing(allow_empty_classes=True)
    with pytest.raises(DatasetError, match=r"no train image of class 'dahlia' can be read"):
        pack(str(images), str(tmp_path / "out"), packing)


# --- determinism


def test_packing_anywhere_is_the_same_data_set(photographs: Path, packed: Path, s3: str) -> None:
    source, out = storage.join(s3, "images"), storage.join(s3, "out")
    for file in photographs.rglob("*.*"):
        storage.upload(file, storage.join(source, file.relative_to(photographs).as_posix()))
    remote = pack(source, out, Packing(eval_fraction=0.25))
    assert remote.fingerprint == manifests.load(str(packed)).fingerprint
    assert manifests.load(out) == remote
    manifests.check_trainable(remote, out)
    assert storage.sizes(out).keys() == storage.sizes(str(packed)).keys()


def test_packing_twice_writes_the_same_bytes(
    photographs: Path, packed: Path, tmp_path: Path
) -> None:
    again = pack(str(photographs), str(tmp_path), Packing(eval_fraction=0.25))
    assert again == manifests.load(str(packed))
    for file in packed.rglob("*.*"):
        assert (tmp_path / file.relative_to(packed)).read_bytes() == file.read_bytes()


def test_another_seed_is_another_data_set_of_the_same_images(
    photographs: Path, packed: Path, tmp_path: Path
) -> None:
    other = pack(str(photographs), str(tmp_path), Packing(eval_fraction=0.25, seed=1))
    assert other.fingerprint != manifests.load(str(packed)).fingerprint
    digests = [sorted((row["id"], row["digest"]) for row in rows(f)) for f in (packed, tmp_path)]
    assert digests[0] == digests[1]


def test_hidden_files_change_nothing(images: Path, packed: Path, tmp_path: Path) -> None:
    (images / "roof/._1.jpg").write_bytes(b"a Mac's notes")
    (images / ".trash").mkdir()
    shutil.copy(images / "roof/0.jpg", images / ".trash/0.jpg")
    manifest = pack(str(images), str(tmp_path / "out"), Packing(eval_fraction=0.25))
    assert manifest.fingerprint == manifests.load(str(packed)).fingerprint


def test_progress_counts_every_file(photographs: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(
        str(photographs), str(tmp_path), on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen) and seen[-1] == (24, 24)


# --- splits


def test_every_image_is_in_one_split_under_one_id(photographs: Path, tmp_path: Path) -> None:
    manifest = pack(
        str(photographs), str(tmp_path), Packing(eval_fraction=0.25, test_fraction=0.25)
    )
    assert manifest.images == {"train": 12, "eval": 4 + 2, "test": 4 + 2}
    assert sorted(row["id"] for row in rows(tmp_path)) == list(range(24))
    files = {file.relative_to(photographs).as_posix() for file in photographs.rglob("*.*")}
    assert {row["image"]["path"] for row in rows(tmp_path)} == files
    for split, each in (("train", 4), ("eval", 2), ("test", 2)):
        assert Counter(row["label"] for row in rows(tmp_path, split)) == dict.fromkeys(
            range(3), each
        )


def test_class_sorted_folders_are_mixed_in_every_row_group(tmp_path: Path) -> None:
    write_colours(tmp_path / "images", classes=3, each=120)
    manifest = pack(str(tmp_path / "images"), str(tmp_path / "out"))
    groups = manifest.index("train").sizes
    labels = [row["label"] for row in rows(tmp_path / "out", "train")]
    for part in np.split(labels, np.cumsum(groups)[:-1]):
        share = np.bincount(part, minlength=3) / len(part)
        assert np.all(np.abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / len(part)))  # four deviations


# --- shards


def test_shards_have_the_documented_columns_and_digests(packed: Path, photographs: Path) -> None:
    manifest = manifests.load(str(packed))
    for row in rows(packed):
        path, data = row["image"]["path"], row["image"]["bytes"]
        assert set(row) == {"id", "image", "label", "digest"}
        assert (photographs / path).read_bytes() == data
        assert row["digest"] == hashlib.sha256(data).hexdigest()
        assert manifest.classes[row["label"]] == path.split("/")[0]


def test_the_manifest_tells_every_shards_row_groups_bytes_and_digest(packed: Path) -> None:
    for shards in manifests.load(str(packed)).splits.values():
        for shard in shards:
            raw = (packed / shard.path).read_bytes()
            file = pq.ParquetFile(io.BytesIO(raw)).metadata
            result = tuple(file.row_group(i).num_rows for i in range(file.num_row_groups))
            assert (shard.row_groups, shard.rows) == (result, file.num_rows)
            assert (shard.bytes, shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_shards_carry_class_names_for_hugging_face(packed: Path) -> None:
    metadata = pq.read_schema(packed / "train/00000.parquet").metadata
    classes = list(manifests.load(str(packed)).classes)
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": classes}
    assert json.loads(metadata[b"classes"]) == classes == ["dahlia", "garden", "roof"]


# --- looked at while packing


def picture(index: int = 0) -> Image.Image:
    """A part of a photograph."""
    photograph = Image.fromarray(load_sample_images().images[index % 2])
    return photograph.crop((10 * index, 5 * index, 10 * index + 160, 5 * index + 120))


def test_equal_images_are_moved_to_one_split_and_told(images: Path, tmp_path: Path) -> None:
    for name in ("roof", "garden"):
        for index in range(8):
            original = next(images.glob(f"{name}/{index}.*"))
            shutil.copy(original, images / name / f"again {index}{original.suffix}")
    out = tmp_path / "out"
    manifest = pack(str(images), str(out), Packing(eval_fraction=0.4))
    assert sum(manifest.images.values()) == 24 + 16
    where: dict[str, set[str]] = {}
    for split in manifest.splits:
        for row in rows(out, split):
            where.setdefault(row["digest"], set()).add(split)
    assert set(map(len, where.values())) == {1}
    output = report.load(str(out))
    assert output.duplicates == 32 and output.moved > 0
    pairs = pq.read_table(out / DUPLICATES).to_pylist()
    assert sum(pair["distance"] == 0 for pair in pairs) == 16
    assert {pair["split"] == pair["other_split"] for pair in pairs if not pair["distance"]} == {
        True
    }
    manifests.check_trainable(manifest, str(out))
    assert sorted(row["id"] for row in rows(out)) == list(range(40))


def test_equal_images_across_splits_are_refused_on_request_and_can_be_moved_then(
    images: Path, tmp_path: Path
) -> None:
    for file in sorted(images.glob("*/*.*")):
        shutil.copy(file, file.with_stem(f"again {file.stem}"))
    out, reads = str(tmp_path / "out"), len(list(images.glob("*/*.*")))
    with pytest.raises(
        DatasetError,
        match=r"have an identical image in another split, for example .*--duplicates move",
    ):
        pack(str(images), out, Packing(duplicates="refuse"))
    assert not (tmp_path / "out" / manifests.NAME).exists()
    manifest = pack(str(images), out)
    assert sum(manifest.images.values()) == reads
    assert manifest.fingerprint == pack(str(images), str(tmp_path / "other")).fingerprint


def test_refused_duplicates_are_named_even_if_their_group_moves_first(
    images: Path, tmp_path: Path
) -> None:
    first, second = sorted(images.glob("roof/*.*"))[:2]
    twin = second.with_stem("z twin")
    shutil.copy(second, twin)
    rows = [(first, "roof", 1, "eval"), (second, "roof", 1, "eval"), (twin, "garden", 2, "train")]
    lines = [f"{path},{label},{group},{split}" for path, label, group, split in rows]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,group,split", *lines]) + "\n")
    columns = {"group_column": "group", "split_column": "split"}
    packing = Packing(**columns, duplicates="refuse", allow_empty_classes=True)
    with pytest.raises(DatasetError, match=rf"1 images .*{second.name} \(eval\) and .*z twin"):
        pack(str(table), str(tmp_path / "out"), packing)


def test_nearly_equal_images_across_splits_are_told(tmp_path: Path) -> None:
    for index in range(12):
        for split, quality in (("train", 90), ("val", 60)):
            target = tmp_path / "images" / split / str(index % 2) / f"{index}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture(index).save(target, quality=quality)
    pack(str(tmp_path / "images"), str(tmp_path / "out"))
    pairs = pq.read_table(tmp_path / "out" / DUPLICATES).to_pylist()
    result = {(pair["path"][-8:], pair["other_path"][-8:]) for pair in pairs}
    assert {(f"/{i % 2}/{i}.jpg"[-8:],) * 2 for i in range(12)} <= result
    assert report.load(str(tmp_path / "out")).near_duplicates >= 12


def test_equal_images_with_different_labels_are_counted(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "roof/0.jpg", images / "garden/roof.jpg")
    pack(str(images), str(tmp_path / "out"))
    assert report.load(str(tmp_path / "out")).contradictions == 1


def test_large_images_are_made_smaller_once_and_small_ones_keep_their_bytes(
    images: Path, tmp_path: Path
) -> None:
    large = Image.fromarray(load_sample_images().images[0])
    large.save(images / "roof/large.jpg", quality=95)
    manifest = pack(str(images), str(tmp_path / "out"), Packing(max_side=200))
    for row in rows(tmp_path / "out"):
        data = row["image"]["bytes"]
        assert row["digest"] == hashlib.sha256(data).hexdigest()
        if row["image"]["path"] == "roof/large.jpg":
            small = Image.open(io.BytesIO(data))
            assert small.size == (200, 133)
            off = np.asarray(small, float) - np.asarray(large.resize((200, 133), Image.LANCZOS))
            assert np.abs(off).mean() < 3
        else:
            assert data == (images / row["image"]["path"]).read_bytes()
    again = pack(str(images), str(tmp_path / "again"), Packing(max_side=200))
    assert again.fingerprint == manifest.fingerprint
    assert report.load(str(tmp_path / "out")).width[2] == 640  # as they were


def test_the_report_tells_counts_bytes_sizes_and_tiny_classes(
    images: Path, tmp_path: Path
) -> None:
    (images / "roof/3.png").write_bytes(b"no image")
    manifest = pack(str(images), str(tmp_path / "out"))
    output = report.load(str(tmp_path / "out"))
    every = rows(tmp_path / "out")
    for index, name in enumerate(manifest.classes):
        result = [row for row in every if row["label"] == index]
        assert sum(output.images[split][index] for split in output.images) == len(result)
        weight = sum(len(row["image"]["bytes"]) for row in result)
        assert sum(output.bytes[split][index] for split in output.bytes) == weight
        assert output.tiny[name] == output.images["train"][index] < 10
    assert (output.width, output.height) == ((120,) * 3, (90,) * 3)
    assert sum(output.quarantined.values()) == 1


# --- interrupted, parallel


class Killed(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_packing_is_continued(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effnet_ray.packing.shard_jobs.SHARD_BYTES", 20_000)
    whole = pack(str(images), str(tmp_path / "whole"))
    assert len(whole.splits["train"]) > 3

    def dies(done: int, total: int) -> None:
        if done > total / 3:
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        pack(str(images), str(out), on_progress=dies)
    assert not (out / manifests.NAME).exists()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*.parquet")}
    assert before
    assert pack(str(images), str(out)).fingerprint == whole.fingerprint
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not (out / WORK_FOLDER).exists()
    assert {f.relative_to(out) for f in out.rglob("*")} == {
        f.relative_to(tmp_path / "whole") for f in (tmp_path / "whole").rglob("*")
    }


def test_what_another_packing_left_behind_does_not_mix_in(images: Path, tmp_path: Path) -> None:
    def dies(done: int, total: int) -> None:
        raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        pack(str(images), str(out), Packing(seed=1), on_progress=dies)
    assert list(out.glob("*/*.parquet"))
    clean = pack(str(images), str(tmp_path / "clean"))
    assert pack(str(images), str(out)) == clean
    assert {f.relative_to(out) for f in out.rglob("*")} == {
        f.relative_to(tmp_path / "clean") for f in (tmp_path / "clean").rglob("*")
    }


def test_files_of_unknown_origin_are_in_the_way(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/mine.parquet").write_bytes(b"precious")
    with pytest.raises(
        DatasetError, match=r"files that packing did not write \(train/mine.parquet\)"
    ):
        pack(str(images), str(tmp_path / "out"))
    assert (tmp_path / "out/train/mine.parquet").read_bytes() == b"precious"


@pytest.mark.ray
def test_packing_on_a_cluster_is_the_same_data_set(
    images: Path, packed: Path, tmp_path: Path, cluster: None
) -> None:
    manifest = pack(str(images), str(tmp_path / "out"), Packing(eval_fraction=0.25),
                    map_function=ray_map.ray_map)  # fmt: skip
    assert manifest.fingerprint == manifests.load(str(packed)).fingerprint


@pytest.mark.ray
def test_a_mistake_found_on_a_cluster_is_told_as_here(tmp_path: Path, cluster: None) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(DatasetError, match=r"a.tar is damaged"):
        pack(str(tmp_path), str(tmp_path / "out"), map_function=ray_map.ray_map)


# --- what is set aside, reported or refused


@pytest.mark.parametrize("damage", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0 cut short"])
def test_an_unreadable_file_is_quarantined_and_named(
    images: Path, tmp_path: Path, damage: bytes
) -> None:
    (images / "roof/3.png").write_bytes(damage)
    out = tmp_path / "out"
    manifest = pack(str(images), str(out))
    assert manifest.quarantined == 1 and sum(manifest.images.values()) == 23
    (named,) = pq.read_table(out / QUARANTINE).to_pylist()
    assert named["path"] == "roof/3.png" and named["reason"]
    assert named["digest"] == hashlib.sha256(damage).hexdigest()
    assert "roof/3.png" not in {row["image"]["path"] for row in rows(out)}


def test_nothing_unreadable_is_an_empty_quarantine(packed: Path) -> None:
    assert manifests.load(str(packed)).quarantined == 0
    assert pq.read_table(packed / QUARANTINE).num_rows == 0


def test_packing_again_is_reported_not_redone(images: Path, tmp_path: Path) -> None:
    def again() -> Manifest:
        return pack(str(images), str(tmp_path / "out"), on_progress=lambda *_: done.append(1))

    done: list[int] = []
    first = again()
    written, before = len(done), {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*")}
    assert again() == first and len(done) == written
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"eval_fraction": 0.3}, "eval_fraction 0.25, not 0.3"),
        ({"test_fraction": 0.2, "seed": 2}, "seed 0, not 2, test_fraction 0.0, not 0.2"),
        ({"max_side": 64}, "max_side None, not 64"),
    ],
)
def test_another_data_set_is_never_replaced(
    photographs: Path, packed: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(
        DatasetError, match=f"{packed} was packed with {says}: choose another --out"
    ):
        pack(str(photographs), str(packed), Packing(**({"eval_fraction": 0.25} | change)))


def test_another_source_at_the_same_place_is_refused(images: Path, packed: Path) -> None:
    (images / "roof/0.jpg").unlink()
    with pytest.raises(DatasetError, match="contains another data set"):
        pack(str(images), str(packed), Packing(eval_fraction=0.25))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(
        DatasetError, match=r"no images in .* \(1 files\): expected one folder per"
    ):
        pack(str(tmp_path), str(tmp_path / "out"))


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_colours(tmp_path / "images", classes=1, each=4)
    with pytest.raises(DatasetError, match=r"has one class \(0\)"):
        pack(str(tmp_path / "images"), str(tmp_path / "out"))


@pytest.mark.parametrize(("each", "test_fraction"), [(1, 0.0), (2, 0.1)])
def test_a_class_too_small_to_split_is_refused_by_name(
    tmp_path: Path, each: int, test_fraction: float
) -> None:
    write_colours(tmp_path / "images", classes=2, each=each)
    with pytest.raises(DatasetError, match=f"class '0' has {each} images, too few"):
        pack(str(tmp_path / "images"), str(tmp_path / "out"), Packing(test_fraction=test_fraction))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fractions", "says"),
    [
        ((0.0, 0.0), "eval-fraction is 0: expected above 0, below 1"),
        ((1.0, 0.0), "eval-fraction is 1: expected above 0, below 1"),
        ((-0.1, 0.0), "eval-fraction is -0.1: expected above 0, below 1"),
        ((0.5, 0.5), "leave no train images: expected a sum below 1"),
        ((0.2, -0.1), "test-fraction is -0.1: expected 0 or more, below 1"),
        ((float("nan"), 0.0), "eval-fraction is nan"),
    ],
)
def test_fractions_that_leave_nothing_are_refused(
    photographs: Path, tmp_path: Path, fractions: tuple[float, float], says: str
) -> None:
    with pytest.raises(DatasetError, match=says):
        pack(
            str(photographs),
            str(tmp_path),
            Packing(eval_fraction=fractions[0], test_fraction=fractions[1]),
        )


def test_packing_onto_the_source_is_refused(images: Path) -> None:
    with pytest.raises(DatasetError, match="is the source itself"):
        pack(str(images), str(images))


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"source .* does not exist: check the path"):
        pack(str(tmp_path / "absent"), str(tmp_path / "out"))
