"""Predictions: one row for every image, whatever is interrupted."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.releases import released

from effnet_ray import Placement, storage
from effnet_ray.data import image_checks
from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import DatasetError, EvaluationError, ImageError, InputError, StorageError
from effnet_ray.inference import image_sources, predict as predictions
from effnet_ray.inference.image_sources import ImageSource, find_images
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.predict import predict
from effnet_ray.inference.predictor import (
    PredictingActor,
    decode_predictions,
    preprocess_units,
    work_items,
)
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime.inference_actors import MachineShare

TWO = Placement(workers="2")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return released(tmp_path_factory.mktemp("released"))


@pytest.fixture
def pictures(photographs: Path, tmp_path: Path) -> Path:
    """24 photographs in folders, a broken one, and what is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(photographs.rglob("*.*")):
        target = folder / path.relative_to(photographs).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def in_parquet(pictures: Path, folder: Path) -> str:
    """Hugging Face's layout, ten rows to a group, without labels; one row has no bytes."""
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}}
        for path in sorted(pictures.rglob("*.*"))
        if path.suffix != ".txt"
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows.append({"image": {"bytes": None, "path": "gone.png"}})
    folder.mkdir()
    table = pa.Table.from_pylist(rows, schema=pa.schema([("image", kind)]))
    pq.write_table(table, folder / "a.parquet", row_group_size=10)
    return str(folder)


def everything(source: ImageSource) -> dict[str, bytes | ImageError]:
    return {path: data for unit in source.units for path, data in source.read(unit)}


# --- where images lie


def test_a_folder_has_its_pictures_at_any_depth_and_nothing_else(pictures: Path) -> None:
    source = find_images(str(pictures))
    read = everything(source)
    expected = {p.relative_to(pictures).as_posix() for p in pictures.rglob("*.*")} - {"notes.txt"}
    assert read.keys() == expected and source.images == 25
    assert all(read[path] == (pictures / path).read_bytes() for path in expected)


def test_the_first_bytes_decide_about_files_of_other_names(pictures: Path) -> None:
    first = min(pictures.glob("*/*.jp*g"))
    for name in ("IMG_1", "picture.jpg.1", "x.dat"):
        (pictures / name).write_bytes(first.read_bytes())
    assert {"IMG_1", "picture.jpg.1", "x.dat"} < everything(find_images(str(pictures))).keys()


@pytest.mark.parametrize("column", ["image", "jpg"])
def test_parquet_may_have_a_column_of_bytes(pictures: Path, tmp_path: Path, column: str) -> None:
    data = min(pictures.glob("*/*.jp*g")).read_bytes()
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({column: [data, data]}), tmp_path / "shards/a.parquet")
    assert list(everything(find_images(str(tmp_path / "shards"))).values()) == [data, data]


def test_one_picture_is_a_source(pictures: Path) -> None:
    (one,) = everything(find_images(str(pictures / "broken.jpg")))
    assert one == "broken.jpg"


def test_object_storage_has_the_same_pictures(pictures: Path, s3: str) -> None:
    for path in pictures.rglob("*.*"):
        name = path.relative_to(pictures).as_posix()
        storage.write_bytes(f"{s3}/{name}", path.read_bytes())
    assert everything(find_images(s3)) == everything(find_images(str(pictures)))


def test_a_data_set_has_all_splits_or_one(packed: Path) -> None:
    both, one = find_images(str(packed)), find_images(str(packed), split="eval")
    assert (both.images, one.images) == (24, 6)
    assert everything(one).items() <= everything(both).items()
    with pytest.raises(DatasetError, match="no test images: choose --split from train, eval"):
        find_images(str(packed), split="test")


def test_parquet_needs_no_labels(pictures: Path, tmp_path: Path) -> None:
    source = find_images(in_parquet(pictures, tmp_path / "shards"))
    read = everything(source)
    assert (source.images, len(read), len(source.units)) == (26, 26, 3)
    bad = {path for path, data in read.items() if isinstance(data, ImageError)}
    assert bad == {"a.parquet#2/5/gone.png"}


def test_pictures_beside_parquet_are_read_too(pictures: Path, tmp_path: Path) -> None:
    shards = Path(in_parquet(pictures, tmp_path / "shards"))
    (shards / "assets").mkdir()
    (shards / "assets" / "preview.png").write_bytes(b"x")
    pq.write_table(pa.table({"a": [1]}), shards / "index.parquet")
    assert find_images(str(shards)).images == 27


def test_a_picture_that_storage_does_not_read_is_not_called_unreadable(pictures: Path) -> None:
    source = find_images(str(pictures))
    (pictures / "broken.jpg").unlink()  # gone: a reason
    assert isinstance(everything(source)["broken.jpg"], ImageError)
    (pictures / "broken.jpg").symlink_to("broken.jpg")  # a link to itself: no reason of the image
    with pytest.raises(StorageError, match=r"cannot read .*broken\.jpg"):
        everything(source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "a.parquet").write_text("no Parquet"), "not readable Parquet"),
        (lambda folder: (folder / "a.txt").write_text("a"), r"no images in .* \(1 files\)"),
        (lambda folder: (folder / "a").mkdir(), r"no images in .* \(0 files\): expected"),
        (lambda folder: folder.rmdir(), r"source .* does not exist: check the path"),
        (lambda folder: pq.write_table(pa.table({"a": [1]}), folder / "a.parquet"), "no column"),
    ],
)  # fmt: skip
def test_what_has_no_images_is_refused(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        find_images(str(tmp_path))


def test_only_a_data_set_has_splits(pictures: Path) -> None:
    with pytest.raises(DatasetError, match="needs a packed data set"):
        find_images(str(pictures), split="eval")


def test_parts_hold_every_unit_once_in_order(pictures: Path) -> None:
    units = tuple(image_sources.ImageUnit(images) for images in (3, 4, 2, 9, 1, 1))
    parts = ImageSource("", units).parts(min_images=5)
    assert [unit for part in parts for unit in part] == list(units)
    assert [sum(unit.images for unit in part) for part in parts] == [7, 11, 2]


# --- what is said of them


def spoken(release: LoadedRelease, data: bytes) -> np.ndarray:
    """Probabilities, as in training's evaluation."""
    view = torch.tensor(eval_view(decode(data), release.spec)).permute(2, 0, 1)[None]
    share: np.ndarray = release.network(view).softmax(1)[0].numpy()
    return share


def test_a_prediction_is_made_by_the_released_preprocessing(
    release: LoadedRelease, pictures: Path
) -> None:
    """Without Ray: what its tasks and actors do is done here, one after the other."""
    source, options = find_images(str(pictures)), PredictOptions(top=4)
    actor = PredictingActor(options, release.uri, release.sha256, MachineShare(cores=1))
    rows = [
        row
        for item in work_items(source, list(enumerate(source.parts(100))))
        for views in preprocess_units(
            {"unit": np.asarray([item["unit"]], object)}, source, release.spec, max_images=64
        )
        for block in actor(views)
        for batch in decode_predictions(block, options)
        for row in batch.readable_rows
    ]
    assert len(rows) == 24
    for row in rows:
        path, labels, shares = row.path, row.label, row.probability
        expected = spoken(release, (pictures / path).read_bytes())[labels]
        assert np.allclose(shares, expected, atol=1e-5)


@pytest.fixture(scope="module")
def small_parts() -> Iterator[None]:
    """Parts of one unit each, of ten pictures."""
    before = predictions.PART_IMAGES, image_sources.UNIT_FILES
    predictions.PART_IMAGES, image_sources.UNIT_FILES = 1, 10
    yield
    predictions.PART_IMAGES, image_sources.UNIT_FILES = before


@pytest.mark.ray
def test_every_image_has_one_row_also_after_an_interruption(
    cluster: object, small_parts: None, release: LoadedRelease, pictures: Path, tmp_path: Path
) -> None:
    out, received = tmp_path / "out", list[tuple[int, int]]()
    wanted = PredictOptions(top=2, embeddings=True)

    def go() -> predictions.PredictResult:
        received.clear()
        return predict(
            release, str(pictures), str(out), TWO, wanted,
            on_progress=lambda done, images: received.append((done, images)),
        )  # fmt: skip

    output = go()
    assert (output.images, output.rows, output.quarantined) == (25, 24, 1)
    assert received[0] == (0, 25) and received[-1] == (25, 25)
    table = pq.read_table(out)
    for row in table.to_pylist():
        share = spoken(release, (pictures / row["path"]).read_bytes())
        likeliest = [release.classes[k] for k in np.argsort(-share, kind="stable")[:2]]
        assert (row["label"], row["labels"]) == (likeliest[0], likeliest)
        assert np.allclose(row["probabilities"], np.sort(share)[::-1][:2], atol=1e-5)
        assert len(row["embedding"]) == 1280
    (bad,) = pq.read_table(out / "_quarantine" / "part-00000.parquet").to_pylist()
    assert bad["path"] == "broken.jpg" and bad["reason"]

    (out / "part-00001.parquet").unlink()
    (out / "_done.json").unlink()
    stale = pa.table({"path": ["x"], "reason": ["of a call that was killed"]})
    predictions.parquet.write_table(f"{out}/_quarantine/part-00001.parquet", stale)
    assert go() == output and received[0] == (15, 25)  # the other ten alone are looked at
    again = pq.read_table(out)
    assert all(again[name].equals(table[name]) for name in ("path", "label", "labels"))
    shares = [np.asarray(each["probabilities"].to_pylist()) for each in (again, table)]
    assert np.allclose(*shares, atol=1e-6)  # one actor has more threads than each of two

    class NoRay(Exception):
        """Raised by whoever asks for Ray."""

    def refuse(_: Placement) -> None:
        raise NoRay

    assert predict(release, str(pictures), str(out), TWO, wanted, connect=refuse) == output
    with pytest.raises(DatasetError, match=r"other settings \(.*top"):
        predict(release, str(pictures), str(out), TWO, PredictOptions(top=1), connect=refuse)
    (pictures / "new.png").write_bytes((pictures / "broken.jpg").read_bytes())
    with pytest.raises(DatasetError, match=r"other settings \(source\)"):
        predict(release, str(pictures), str(out), TWO, wanted, connect=refuse)


def test_a_folder_of_other_files_is_not_written_into(
    release: LoadedRelease, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not predictions"):
        predict(release, str(pictures), str(tmp_path), TWO)


def test_a_missing_row_is_told(pictures: Path, tmp_path: Path) -> None:
    source = find_images(str(pictures))
    table = pa.table({"path": ["a"]})
    predictions.parquet.write_table(f"{tmp_path}/part-00000.parquet", table)
    parts = list(enumerate(source.parts(100)))
    with pytest.raises(EvaluationError, match="1 rows and 0 quarantined images"):
        predictions.finish(parts, source, str(tmp_path))


def test_a_damaged_part_is_told(pictures: Path, tmp_path: Path) -> None:
    source = find_images(str(pictures))
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(
        DatasetError, match=r"part-00000\.parquet is damaged: .* run the same command again"
    ):
        predictions.finish(list(enumerate(source.parts(100))), source, str(tmp_path))


@pytest.mark.parametrize("begun", ["[]", "{", "1"])
def test_a_folder_that_began_with_something_else_is_refused(
    release: LoadedRelease, pictures: Path, tmp_path: Path, begun: str
) -> None:
    (tmp_path / predictions.STARTED).write_text(begun)
    with pytest.raises(DatasetError, match=r"other settings \(model, "):
        predict(release, str(pictures), str(tmp_path), TWO)


def test_a_file_name_that_is_no_text_is_shown_as_some(pictures: Path) -> None:
    name = os.fsencode(str(pictures)) + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write((pictures / "broken.jpg").read_bytes())
    read = everything(find_images(str(pictures)))
    assert read[r"caf\xe9.jpg"] == read["broken.jpg"]
    assert pa.array(list(read), pa.string()).null_count == 0  # Parquet can hold them


def test_what_is_no_file_is_no_picture(pictures: Path) -> None:
    os.mkfifo(pictures / "endless.jpg")
    assert find_images(str(pictures)).images == 25


def test_a_picture_of_too_many_bytes_is_not_read(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_checks, "MAX_FILE_BYTES", 20)
    bad = [data for data in everything(find_images(str(pictures))).values()]
    assert all(isinstance(data, ImageError) and "at most 20" in str(data) for data in bad[1:])
