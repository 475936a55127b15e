"""Packing: deterministic, mixed, complete; what it refuses and what it sets aside."""

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.pack import QUARANTINE, Source, _split, pack
from effnet_ray.errors import DatasetError


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


# --- determinism


def test_packing_anywhere_is_the_same_data_set(photographs: Path, packed: Path, s3: str) -> None:
    source, out = storage.join(s3, "images"), storage.join(s3, "out")
    for file in photographs.rglob("*.*"):
        storage.upload(file, storage.join(source, file.relative_to(photographs).as_posix()))
    remote = pack(source, out, eval_fraction=0.25)
    assert remote.fingerprint == manifests.load(str(packed)).fingerprint
    assert manifests.load(out) == remote
    manifests.check(remote, out)
    assert storage.sizes(out).keys() == storage.sizes(str(packed)).keys()


def test_packing_twice_writes_the_same_bytes(
    photographs: Path, packed: Path, tmp_path: Path
) -> None:
    again = pack(str(photographs), str(tmp_path), eval_fraction=0.25)
    assert again == manifests.load(str(packed))
    for file in packed.rglob("*.*"):
        assert (tmp_path / file.relative_to(packed)).read_bytes() == file.read_bytes()


def test_another_seed_is_another_data_set_of_the_same_images(
    photographs: Path, packed: Path, tmp_path: Path
) -> None:
    other = pack(str(photographs), str(tmp_path), eval_fraction=0.25, seed=1)
    assert other.fingerprint != manifests.load(str(packed)).fingerprint
    digests = [sorted((row["id"], row["digest"]) for row in rows(f)) for f in (packed, tmp_path)]
    assert digests[0] == digests[1]


def test_hidden_files_change_nothing(images: Path, packed: Path, tmp_path: Path) -> None:
    (images / "roof/._1.jpg").write_bytes(b"a Mac's notes")
    (images / ".trash").mkdir()
    shutil.copy(images / "roof/0.jpg", images / ".trash/0.jpg")
    manifest = pack(str(images), str(tmp_path / "out"), eval_fraction=0.25)
    assert manifest.fingerprint == manifests.load(str(packed)).fingerprint


def test_progress_counts_every_file(photographs: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(str(photographs), str(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (24, 24)


# --- splits


@given(
    st.lists(st.integers(3, 60), min_size=2, max_size=6),
    st.floats(0.01, 0.45),
    st.just(0.0) | st.floats(0.01, 0.45),
    st.integers(0, 2**31),
)
def test_every_file_is_in_one_split_and_every_class_in_each(
    counts: Sequence[int], eval_fraction: float, test_fraction: float, seed: int
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    files = [
        Source(id=i, path=f"{label}/{i}", label=label, bytes=1) for i, label in enumerate(labels)
    ]
    fractions = {"eval": eval_fraction, "test": test_fraction}
    splits = _split(files, [f"class {label}" for label in range(len(counts))], fractions, seed)
    assert sorted(file.id for split in splits.values() for file in split) == list(
        range(len(files))
    )
    for name, fraction in fractions.items():
        found = Counter(file.label for file in splits.get(name, ()))
        share = {label: abs(found[label] - fraction * count) for label, count in enumerate(counts)}
        assert max(share.values()) <= (1 if fraction else 0)
    assert {file.label for file in splits["train"]} == set(range(len(counts)))


def test_every_image_is_in_one_split_under_one_id(photographs: Path, tmp_path: Path) -> None:
    manifest = pack(str(photographs), str(tmp_path), eval_fraction=0.25, test_fraction=0.25)
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
    groups = [rows for _, _, rows in manifest.row_groups("train")]
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
            found = tuple(file.row_group(i).num_rows for i in range(file.num_row_groups))
            assert (shard.row_groups, shard.rows) == (found, file.num_rows)
            assert (shard.bytes, shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_shards_carry_class_names_for_hugging_face(packed: Path) -> None:
    metadata = pq.read_schema(packed / "train/00000.parquet").metadata
    classes = list(manifests.load(str(packed)).classes)
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": classes}
    assert json.loads(metadata[b"classes"]) == classes == ["dahlia", "garden", "roof"]


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
        return pack(str(images), str(tmp_path / "out"), progress=lambda *_: done.append(1))

    done: list[int] = []
    first = again()
    written, before = len(done), {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*")}
    assert again() == first and len(done) == written
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"eval_fraction": 0.3}, {"test_fraction": 0.2}])
def test_another_data_set_is_never_replaced(
    photographs: Path, packed: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(DatasetError, match=f"{packed} holds another data set .*another --out"):
        pack(str(photographs), str(packed), **({"eval_fraction": 0.25} | change))


def test_another_source_at_the_same_place_is_refused(images: Path, packed: Path) -> None:
    (images / "roof/0.jpg").unlink()
    with pytest.raises(DatasetError, match="holds another data set"):
        pack(str(images), str(packed), eval_fraction=0.25)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(
        DatasetError, match=r"no images in .* \(1 files\): expected one folder per"
    ):
        pack(str(tmp_path), str(tmp_path / "out"))


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_colours(tmp_path / "images", classes=1, each=4)
    with pytest.raises(DatasetError, match=r"one class folder \(0\)"):
        pack(str(tmp_path / "images"), str(tmp_path / "out"))


@pytest.mark.parametrize(("each", "test_fraction"), [(1, 0.0), (2, 0.1)])
def test_a_class_too_small_to_split_is_refused_by_name(
    tmp_path: Path, each: int, test_fraction: float
) -> None:
    write_colours(tmp_path / "images", classes=2, each=each)
    with pytest.raises(DatasetError, match=f"class '0' has {each} images, too few"):
        pack(str(tmp_path / "images"), str(tmp_path / "out"), test_fraction=test_fraction)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fractions",
    [(0.0, 0.0), (1.0, 0.0), (-0.1, 0.0), (0.5, 0.5), (0.2, -0.1), (float("nan"), 0.0)],
)
def test_fractions_that_leave_nothing_are_refused(
    photographs: Path, tmp_path: Path, fractions: tuple[float, float]
) -> None:
    with pytest.raises(DatasetError, match="leave no train images"):
        pack(
            str(photographs), str(tmp_path), eval_fraction=fractions[0], test_fraction=fractions[1]
        )


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"source .* does not exist: check the path"):
        pack(str(tmp_path / "absent"), str(tmp_path / "out"))
