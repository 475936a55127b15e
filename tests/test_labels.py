"""The labels read in advance are those that training reads, or the data set is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import in_place, opened

from effnet_ray.data import manifest as manifests, parquet_reads, train_labels
from effnet_ray.data.chunks import ChunkTask, Dataset, load_chunks
from effnet_ray.data.class_balance import Labels
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import DatasetError


def trained_on(dataset: Dataset) -> list[int]:
    """The train split's labels as training reads them, in the order of ids."""
    parquet_reads.forget_footers()
    (block,) = load_chunks(dataset, [ChunkTask("train", 0, 0, 0, 0, view=0)])
    places = dataset.plan.chunk(0, 0, 0)
    order = np.lexsort((places[:, 1], places[:, 0]))
    result: list[int] = block["label"][order].tolist()
    return result


@pytest.mark.parametrize("limit", [None, 7])
def test_they_are_those_that_training_reads(packed: Path, limit: int | None) -> None:
    dataset = opened(packed, limit)
    known = train_labels.read_train_labels(dataset.manifest, dataset.data)
    assert known == train_labels.read_train_labels(without_file(dataset.manifest), dataset.data)
    assert known.values.tolist() == trained_on(dataset)
    assert len(known.values) == (limit or 18) and known.values.dtype == np.uint8


def without_file(manifest: Manifest) -> Manifest:
    """As packed before there was a file of labels."""
    return replace(manifest, labels_sha256="")


def test_a_file_has_all_labels_without_the_shards(packed: Path, tmp_path: Path) -> None:
    manifest = manifests.load(str(packed))
    from_shards = train_labels.read_train_labels(without_file(manifest), str(packed))
    shutil.copy(packed / train_labels.FILE, tmp_path)
    assert train_labels.read_train_labels(manifest, str(tmp_path)) == from_shards
    limited = train_labels.read_train_labels(manifest.limited(7), str(tmp_path))
    assert limited.values.tolist() == from_shards.values[:7].tolist()


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_where_the_file_is_not_the_manifests_the_shards_are_read(
    packed: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(packed, tmp_path / "data")
    file = tmp_path / "data" / train_labels.FILE
    file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes() + b" ")
    manifest = manifests.load(str(packed))
    read = train_labels.read_train_labels(manifest, str(tmp_path / "data"))
    assert read == train_labels.read_train_labels(manifest, str(packed))


def test_all_row_groups_and_shards_are_read_in_their_order(digits: str) -> None:
    manifest = without_file(manifests.load(digits))
    tables = [pq.read_table(f"{digits}/{s.path}")["label"] for s in manifest.splits["train"]]
    output = np.concatenate([table.to_numpy() for table in tables])
    assert np.array_equal(train_labels.read_train_labels(manifest, digits).values, output)
    assert np.array_equal(
        train_labels.read_train_labels(manifest.limited(100), digits).values, output[:100]
    )


def test_those_of_somebody_elses_column_are_read_from_it(shards: Path) -> None:
    for path in shards.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(
            table.rename_columns([{"label": "kind"}.get(n, n) for n in table.column_names]),
            path, row_group_size=5,
        )  # fmt: skip
    manifest = in_place(shards, label_column="kind")
    dataset = opened(shards)
    known = train_labels.read_train_labels(manifest, str(shards))
    assert known.values.tolist() == trained_on(dataset)
    with pytest.raises(DatasetError, match="0 labels of type null in 'label'"):
        train_labels.read_train_labels(
            without_file(replace(manifest, label_column="label")), str(shards)
        )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, 3], "has the label 3, but the manifest lists classes 0 to 2"),
        ([-1, 0], "has the label -1"),
        ([0, None], "2 labels of type int64 in 'label', 1 of them missing"),
        ([0], "1 labels of type int64"),
        (["a", "b"], "labels of type string"),
    ],
)
def test_labels_that_are_not_the_manifests_are_refused(
    packed: Path, tmp_path: Path, values: list[object], says: str
) -> None:
    manifest = manifests.load(str(packed)).limited(2)
    path = tmp_path / manifest.splits["train"][0].path
    path.parent.mkdir()
    pq.write_table(pa.table({"label": values}), path)
    with pytest.raises(DatasetError, match=says):
        train_labels.read_train_labels(manifest, str(tmp_path))


def test_labels_that_cannot_be_read_are_refused_by_the_shards_name(
    packed: Path, tmp_path: Path
) -> None:
    manifest = manifests.load(str(packed))
    path = tmp_path / manifest.splits["train"][0].path
    path.parent.mkdir()
    path.write_bytes(b"PAR1 but not for long")
    with pytest.raises(DatasetError, match=f"shard {path} cannot be read, even on"):
        train_labels.read_train_labels(manifest, str(tmp_path))


def test_every_use_of_an_image_in_an_epoch_shows_it_otherwise(packed: Path) -> None:
    dataset = opened(packed)
    dataset = replace(
        dataset,
        recipe=replace(dataset.recipe, balance=1.0),
        labels=Labels.of([0] * 17 + [1], 3),
    )
    (block,) = load_chunks(dataset, [ChunkTask("train", 0, 0, 0, 0, view=0)])
    ids, uses = np.unique(block["id"], return_counts=True)
    assert len(block["id"]) == 18 and uses.max() == 9
    views = block["image"][block["id"] == ids[uses.argmax()]]
    assert len(np.unique(views.reshape(9, -1), axis=0)) == 9
