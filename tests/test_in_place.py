"""Somebody else's shards, used where they are."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.datasets import in_place, opened
from support.sources import files, write_hugging_face

from effnet_ray.data import manifest as manifests, parquet_reads
from effnet_ray.data.chunks import ChunkTask, load_chunks
from effnet_ray.data.row_group import RowGroup
from effnet_ray.errors import DatasetError
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack


def loaded(folder: Path) -> list[tuple[int, int, str]]:
    """(id, label, quarantined) of the train split as training reads it."""
    parquet_reads.forget_footers()
    dataset = opened(folder)
    (block,) = load_chunks(dataset, [ChunkTask("train", 0, 0, 0, 0)])
    return list(zip(block["id"].tolist(), block["label"].tolist(), block["bad"], strict=True))


def test_only_a_manifest_is_written_and_training_reads_the_shards(shards: Path) -> None:
    before = {f: hashlib.sha256(f.read_bytes()).digest() for f in files(shards)}
    manifest = in_place(shards)
    after = {f: hashlib.sha256(f.read_bytes()).digest() for f in files(shards)}
    assert after == {**before, shards / "manifest.json": after[shards / "manifest.json"]}
    assert manifest.images == {"train": 12, "eval": 12}
    assert manifest.classes == ("dahlia", "garden", "roof")
    manifests.check_trainable(manifest, str(shards))
    output = pq.read_table(next(shards.glob("data/train-*")))["label"].to_pylist()
    result = loaded(shards)
    assert sorted((i, label) for i, label, _ in result) == list(enumerate(output))
    assert not any(bad for _, _, bad in result)


def test_indexing_again_is_the_same_data_set(shards: Path) -> None:
    assert in_place(shards) == in_place(shards)


def test_a_changed_image_is_quarantined_with_its_row_group(shards: Path) -> None:
    in_place(shards)
    path = next(shards.glob("data/train-*"))
    raw = bytearray(path.read_bytes())
    start = raw.index(b"\xff\xd8\xff")  # the first JPEG
    raw[start + 200] ^= 1
    path.write_bytes(bytes(raw))
    result = loaded(shards)
    bad = [place for place, (_, _, why) in enumerate(sorted(result)) if why]
    assert len(result) == 12 and bad == list(range(5))  # row groups of five


def test_sorted_rows_are_refused(photographs: Path, tmp_path: Path) -> None:
    write_hugging_face(photographs, tmp_path, splits=("train", "validation"), group=4)
    with pytest.raises(DatasetError, match="is sorted by class, so a batch would contain few"):
        in_place(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train",), "needs train-.* and validation-"),
        (("one", "two"), "does not start with a split"),
    ],
)
def test_shards_without_splits_are_refused(
    photographs: Path, tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    write_hugging_face(photographs, tmp_path, splits=names)
    with pytest.raises(DatasetError, match=message):
        in_place(tmp_path)


def test_another_place_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"pass --out {shards}"):
        pack(str(shards), str(tmp_path / "out"), Packing(in_place=True))


def test_labels_that_are_no_numbers_are_refused(shards: Path) -> None:
    with pytest.raises(DatasetError, match="integer column 'camera'"):
        in_place(shards, label_column="camera")


def test_ids_of_splits_are_apart(shards: Path) -> None:
    in_place(shards)
    dataset = opened(shards)
    ids = [
        RowGroup(
            dataset.manifest, dataset.data, split, 0, limited=dataset.recipe.limit is not None
        )
        .record(0)
        .id
        for split in ("train", "eval")
    ]
    assert len(np.unique(ids)) == 2
