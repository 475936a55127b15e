"""Every kind of source gives the same images and labels, and reports unreadable ones."""

import csv
import io
import itertools
import json
import os
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import files, write_hugging_face

from effnet_ray import storage
from effnet_ray.errors import DatasetError, StorageError
from effnet_ray.packing import sources
from effnet_ray.packing.listing import Listing
from effnet_ray.packing.options import Packing, SourceColumns
from effnet_ray.packing.pack import pack
from effnet_ray.packing.sources import list_images


@pytest.fixture
def images(photographs: Path, tmp_path: Path) -> Path:
    """The photographs, to write beside."""
    for path in files(photographs):
        target = tmp_path / "images" / path.relative_to(photographs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


Write = Callable[[Path, Path], str]
"""(class folders, empty folder) → URI of the same images in another form."""


def write_csv(images: Path, out: Path, name: str = "table.csv", **more: Any) -> str:
    """Paths relative to the table, whose folder holds the images."""
    with (images / name).open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(["path", "label", *more])
        for number, path in enumerate(f for f in files(images) if f.parent != images):
            values = [make(number, path) for make in more.values()]
            writer.writerow([path.relative_to(images), path.parent.name, *values])
    return str(images / name)


def write_parquet_table(images: Path, out: Path) -> str:
    """Absolute paths, elsewhere."""
    result = files(images)
    columns = {"path": [str(f) for f in result], "label": [f.parent.name for f in result]}
    pq.write_table(pa.table(columns), out / "table.parquet")
    return str(out / "table.parquet")


def write_tar(images: Path, out: Path, name: str = "000.tar", kind: str = "cls") -> str:
    """Samples with a label beside each image."""
    with tarfile.open(out / name, "w:gz" if name.endswith("gz") else "w") as tar:
        for number, path in enumerate(files(images)):
            label = path.parent.name
            beside = {
                "cls": label.encode(),
                "json": json.dumps({"label": label, "camera": number % 5}).encode(),
                "pkl": pickle.dumps(label),
            }[kind]
            for suffix, data in ((path.suffix, path.read_bytes()), (f".{kind}", beside)):
                info = tarfile.TarInfo(f"shard/{number:05d}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(out)


FORMS: dict[str, Write] = {
    "csv": write_csv,
    "tsv": lambda images, out: write_csv(images, out, "table.tsv"),
    "Parquet table": write_parquet_table,
    "Hugging Face": write_hugging_face,
    "one Parquet file": lambda i, o: (
        f"{write_hugging_face(i, o)}/data/train-00000-of-00001.parquet"
    ),
    "tar": write_tar,
    "tar with JSON": lambda images, out: write_tar(images, out, kind="json"),
    "tar.gz": lambda images, out: write_tar(images, out, "000.tar.gz"),
    "upper-case tar": lambda images, out: write_tar(images, out, "000.TAR"),
}


def listed(source: str, out: Path, columns: SourceColumns | None = None) -> Listing:
    return list_images(source, columns or SourceColumns(), str(out.parent / "data"), map)


def contents(listing: Listing) -> Counter[tuple[str, bytes]]:
    """(class, bytes) of every image, read as the index says."""
    rows = listing.images.to_pylist()
    return Counter(
        (listing.classes[r["label"]], sources.read_image(r["file"], r["offset"], r["bytes"]))
        for r in rows
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_the_same_images_and_labels(images: Path, out: Path, form: str) -> None:
    expected = contents(listed(str(images), out))
    listing = listed(FORMS[form](images, out), out)
    assert contents(listing) == expected
    assert listing.classes == ("dahlia", "garden", "roof")
    paths = listing.images["path"].to_pylist()
    assert paths == sorted(set(paths))


@pytest.mark.parametrize("form", ["csv", "Hugging Face", "tar", "tar.gz"])
def test_every_form_can_be_packed_from_and_to_a_bucket(
    images: Path, tmp_path: Path, out: Path, moto: str, form: str
) -> None:
    from support.servers import fresh_bucket, s3_environment

    local = FORMS[form](images, out)
    root = images if form == "csv" else out
    with s3_environment(moto):
        bucket = fresh_bucket()
        for path in (p for p in root.rglob("*") if p.is_file()):
            storage.upload(path, f"{bucket}/source/{path.relative_to(root).as_posix()}")
        source = f"{bucket}/source{local.removeprefix(str(root))}"
        remote = pack(source, f"{bucket}/out")
        assert sorted(storage.folders(f"{bucket}/out")) == ["eval", "train"]
    here = pack(local, str(tmp_path / "here"))
    assert remote.fingerprint == here.fingerprint
    assert sum(here.images.values()) == 24


def test_folders_named_as_splits_are_the_splits(images: Path, tmp_path: Path, out: Path) -> None:
    for index, path in enumerate(files(images)):
        split = ("train", "train", "val", "test")[index % 4]
        target = tmp_path / "source" / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    listing = listed(str(tmp_path / "source"), out)
    assert listing.classes == ("dahlia", "garden", "roof")
    assert Counter(listing.images["split"].to_pylist()) == {"train": 12, "eval": 6, "test": 6}
    manifest = pack(str(tmp_path / "source"), str(out))
    assert manifest.images == {"train": 12, "eval": 6, "test": 6}


@pytest.mark.parametrize("beside", ["unlabeled", "unlabeled/roof", "Extra/deep/roof"])
def test_a_folder_beside_the_splits_is_refused_and_never_makes_them_classes(
    images: Path, tmp_path: Path, out: Path, beside: str
) -> None:
    source = tmp_path / "source"
    for split in ("train", "val"):
        shutil.copytree(images, source / split)
    shutil.copytree(images / "roof", source / beside)
    name = beside.partition("/")[0]
    with pytest.raises(DatasetError, match=f"the split train/ and, beside it, images in {name}/"):
        listed(str(source), out)


@pytest.mark.parametrize("below", ["photos", "photos/train"])
def test_a_source_one_level_too_high_is_refused_with_the_path_to_pass(
    images: Path, tmp_path: Path, out: Path, below: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(images, source / below)
    with pytest.raises(DatasetError, match=f"pass --source {source}/photos$"):
        listed(str(source), out)


@pytest.mark.parametrize("other", ["Roof", "roof ", "ROOF", " roof"])
def test_classes_that_differ_in_case_or_blanks_are_refused_unless_merged(
    images: Path, tmp_path: Path, out: Path, other: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(images, source)
    shutil.copytree(images / "roof", source / other)
    with pytest.raises(DatasetError, match=r"which differ in case or blanks only") as error:
        listed(str(source), out)
    assert repr(other) in str(error.value) and "'roof'" in str(error.value)
    columns = SourceColumns(merge_similar_classes=True)
    merged = list_images(str(source), columns, str(out / "packed"), map)
    assert len(merged.classes) == 3 and len(merged.images) == 32


def test_a_name_in_two_unicode_forms_is_one_class(images: Path, tmp_path: Path, out: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    source = tmp_path / "source"
    shutil.copytree(images, source / "train")
    shutil.copytree(images, source / "val")
    (source / "train/roof").rename(source / "train" / composed)
    (source / "val/roof").rename(source / "val" / decomposed)
    listing = listed(str(source), out)
    assert listing.classes == (composed, "dahlia", "garden")
    assert Counter(listing.images["label"].to_pylist()) == {0: 16, 1: 16, 2: 16}
    (out / "names.txt").write_text(f"garden\n{decomposed}\ndahlia\n")
    named = SourceColumns(classes=str(out / "names.txt"))
    assert list_images(str(source), named, str(out / "packed"), map).classes[1] == decomposed


def test_symbolic_links_are_followed(images: Path, tmp_path: Path, out: Path) -> None:
    plain = listed(str(images), out)
    linked = tmp_path / "linked"
    (linked / "roof").mkdir(parents=True)
    for file in (images / "roof").iterdir():
        (linked / "roof" / file.name).symlink_to(file)
    (linked / "garden").symlink_to(images / "garden")
    (linked / "dahlia").symlink_to(os.path.relpath(images / "dahlia", linked))
    (linked / "roof/again").symlink_to(linked)  # a loop
    (images / "garden/on").symlink_to(images / "dahlia")  # and one by way of two links
    (images / "dahlia/back").symlink_to(images / "garden")
    (tmp_path / "root").symlink_to(linked)
    listing = listed(str(linked), out)
    paths = listing.images["path"].to_pylist()
    assert [path for path in paths if path.count("/") == 1] == plain.images["path"].to_pylist()
    # Each folder is also seen through the other's link, and not again through its own.
    assert len(paths) == 24 + 8 + 8
    assert listed(str(tmp_path / "root"), out).digest == listing.digest


def test_a_link_to_nothing_is_named(images: Path, out: Path) -> None:
    (images / "roof/far.png").symlink_to("/nowhere/far.png")
    with pytest.raises(StorageError, match=r"far.png is a link to /nowhere/far.png, which does"):
        listed(str(images), out)


def test_a_stray_image_in_a_split_makes_it_no_class(
    images: Path, tmp_path: Path, out: Path
) -> None:
    source = tmp_path / "source"
    for folder in ("train", "val", "unlabeled"):
        shutil.copytree(images, source / folder)
    shutil.copy(files(images)[0], source / "train")
    with pytest.raises(DatasetError, match="beside it, images in unlabeled/"):
        listed(str(source), out)


def test_a_class_may_be_named_as_a_split(images: Path, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(images, source)
    shutil.copytree(images / "roof", source / "train")
    assert "train" in listed(str(source), out).classes


@pytest.mark.parametrize("write", [write_hugging_face, write_tar])
def test_archives_named_as_splits_are_the_splits(images: Path, out: Path, write: Any) -> None:
    if write is write_hugging_face:
        write(images, out, splits=("train", "validation"))
    else:
        write(images, out, "dogs-train-000.tar")
        write(images, out, "dogs-val-000.tar")
    splits = listed(str(out), out).images["split"].to_pylist()
    assert set(splits) == {"train", "eval"} and Counter(splits)["eval"] in (12, 24)


def test_an_archive_without_images_does_not_undo_the_splits(images: Path, out: Path) -> None:
    for split in ("train", "val"):
        write_tar(images, out, f"{split}-000.tar")
    with tarfile.open(out / "extra.tar", "w") as tar:
        info = tarfile.TarInfo("README")
        tar.addfile(info, io.BytesIO(b""))
    listing = listed(str(out), out)
    assert set(listing.images["split"].to_pylist()) == {"train", "eval"}
    assert [entry.path for entry in listing.set_aside] == ["extra.tar#README"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints/x.png", "assets/._logo.png"])
def test_hidden_images_beside_archives_are_set_aside(images: Path, out: Path, name: str) -> None:
    write_tar(images, out)
    (out / name).parent.mkdir()
    (out / name).write_bytes(b"1")
    (entry,) = listed(str(out), out).set_aside
    assert entry.path == name and entry.reason.startswith("hidden")


def test_hidden_folders_of_a_tar_are_set_aside(images: Path, out: Path) -> None:
    write_tar(images, out)
    with tarfile.open(out / "000.tar", "a") as tar:
        for name in ("./.trash/1.jpg", "./.trash/1.cls"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    assert len(listed(str(out), out).set_aside) == 2


@pytest.mark.parametrize("text", ["P1 is a long name", "P2 text of more", "BMW is a car maker"])
def test_text_that_starts_as_a_picture_does_is_text(images: Path, out: Path, text: str) -> None:
    (images / "README").write_text(text)
    (entry,) = listed(str(images), out).set_aside
    assert entry.path == "README"


def test_another_programs_manifest_is_a_file_as_others(images: Path, out: Path) -> None:
    (images / "manifest.json").write_text('{"foo": 1}')
    (entry,) = listed(str(images), out).set_aside
    assert entry.path == "manifest.json"


def test_a_sample_whose_name_has_dots_is_refused_not_lost(images: Path, out: Path) -> None:
    write_tar(images, out)
    with tarfile.open(out / "000.tar", "a") as tar:
        for suffix, data in ((".007.jpg", files(images)[0].read_bytes()), (".007.cls", b"roof")):
            info = tarfile.TarInfo(f"shard/im{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(DatasetError, match=r"im.007.jpg but no image named shard/im"):
        listed(str(out), out)


def test_one_parquet_file_is_read_without_its_neighbours(images: Path, out: Path) -> None:
    folder = write_hugging_face(images, out, splits=("train", "validation"))
    (out / "data/broken.parquet").write_bytes(b"no Parquet")
    result = listed(f"{folder}/data/train-00000-of-00001.parquet", out)
    assert len(result.images) == len(files(images)[::2])


def test_pictures_of_other_kinds_are_quarantined_not_overlooked(images: Path, out: Path) -> None:
    folder = next(path.parent for path in files(images))
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    shutil.copy(next(folder.glob("*.jp*g")), folder / "scanned.jfif")
    data = str(out / "packed")
    manifest = pack(str(images), data)
    assert sum(manifest.images.values()) == len(files(images)) - 1
    left_out = pq.read_table(f"{data}/quarantine.parquet").to_pylist()
    assert [(row["path"], row["reason"][:10]) for row in left_out] == [
        (f"{folder.name}/phone.HEIC", "not a JPEG")
    ]


def test_a_split_column_decides(images: Path, out: Path) -> None:
    source = write_csv(images, out, part=lambda n, path: "Validation" if n % 3 == 0 else "train")
    manifest = pack(source, str(out), Packing(split_column="part"))
    assert manifest.images == {"train": 16, "eval": 8}


@pytest.mark.parametrize("form", ["csv", "Hugging Face", "tar with JSON"])
def test_a_group_stays_in_one_split(images: Path, out: Path, form: str) -> None:
    if form == "csv":
        source = write_csv(images, out, camera=lambda number, path: number % 5)
    else:
        source = FORMS[form](images, out)
    listing = listed(source, out, SourceColumns(group_column="camera"))
    groups = dict(zip(*(listing.images[n].to_pylist() for n in ("path", "group")), strict=True))
    assert len(set(groups.values())) in (5, 8)
    pack(source, str(out / "packed"), Packing(group_column="camera", eval_fraction=0.25))
    where: dict[str, set[str]] = {}
    for split in ("train", "eval"):
        for row in pq.read_table(out / "packed" / split).to_pylist():
            where.setdefault(groups[row["image"]["path"]], set()).add(split)
    assert set(map(len, where.values())) == {1}
    assert {"train", "eval"} <= set.union(*where.values())


def test_a_file_of_class_names_orders_the_classes(images: Path, out: Path) -> None:
    (out / "names.txt").write_text("roof\n\nnothing yet\ngarden\ndahlia\n")
    listing = listed(str(images), out, SourceColumns(classes=str(out / "names.txt")))
    assert listing.classes == ("roof", "nothing yet", "garden", "dahlia")


def test_numbered_labels_take_their_names_from_the_file_and_their_order_from_the_number(
    images: Path, out: Path
) -> None:
    numbers = {"dahlia": 10, "garden": 2, "roof": 0}
    source = write_csv(images, out, number=lambda n, path: numbers[path.parent.name])
    columns = {"label_column": "number"}
    assert listed(source, out, SourceColumns(**columns)).classes == ("0", "2", "10")
    (out / "names.txt").write_text("\n".join(f"class {i}" for i in range(11)))
    named = listed(source, out, SourceColumns(**columns, classes=str(out / "names.txt")))
    assert {named.classes[i] for i in named.images["label"].to_pylist()} == {
        "class 0", "class 2", "class 10",
    }  # fmt: skip


def test_an_index_is_made_once(images: Path, out: Path) -> None:
    source = write_tar(images, out, "000.tar.gz")
    first = listed(source, out)
    tar = out / "000.tar.gz"
    tar.write_bytes(bytes(tar.stat().st_size))  # as large as before, and no longer readable
    assert listed(source, out).images.equals(first.images)


# --- what is refused, each in one sentence


def test_pickles_are_never_opened(images: Path, out: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"no label for shard/00000 \(files beside the image: pkl"
    ):
        listed(write_tar(images, out, kind="pkl"), out)


def test_columns_that_are_not_there_are_told_with_those_that_are(images: Path, out: Path) -> None:
    with pytest.raises(DatasetError, match="no column 'file', only path, label: set the right"):
        listed(write_csv(images, out), out, SourceColumns(path_column="file"))
    with pytest.raises(DatasetError, match="has the columns image, label, camera: expected"):
        listed(write_hugging_face(images, out), out, SourceColumns(label_column="class"))


def test_a_table_that_names_absent_images_is_refused(images: Path, out: Path) -> None:
    source = write_csv(images, out)
    (images / "roof/0.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of the 24 images .* do not exist.*roof/0.jpg"):
        listed(source, out)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\nroof/0.jpg,\nroof/1.jpg,a\n", "rows without a value in 'label'"),
        ("path,label\nroof/0.jpg,a\nroof/0.jpg,b\n", "lists roof/0.jpg twice"),
        ("path,label,split\nroof/0.jpg,a,x\nroof/1.jpg,b,train\n", "has the split 'x'"),
        ("path,label\nroof/0.jpg,a\nroof/1.jpg,a\n", "has one class"),
        ("path,label\nroof/0.jpg\n", "is not a valid CSV table"),
    ],
)
def test_a_table_that_says_nothing_clear_is_refused(
    images: Path, out: Path, table: str, message: str
) -> None:
    (images / "table.csv").write_text(table)
    columns = SourceColumns(split_column="split" if "split" in table else "")
    with pytest.raises(DatasetError, match=message):
        listed(str(images / "table.csv"), out, columns)


def test_labels_outside_the_class_names_are_refused(images: Path, out: Path) -> None:
    (out / "names.txt").write_text("roof\ngarden\n")
    with pytest.raises(DatasetError, match=r"label .dahlia., which is not one of the 2 classes"):
        listed(str(images), out, SourceColumns(classes=str(out / "names.txt")))
    (out / "names.txt").write_text("roof\nroof\n")
    with pytest.raises(DatasetError, match="lists a class name twice"):
        listed(str(images), out, SourceColumns(classes=str(out / "names.txt")))


def test_a_damaged_tar_is_named(images: Path, out: Path) -> None:
    write_tar(images, out)
    whole = (out / "000.tar").read_bytes()
    (out / "000.tar").write_bytes(whole[:20_000])
    with pytest.raises(DatasetError, match=r"000.tar is damaged"):
        listed(str(out), out)


def test_a_group_column_without_a_table_is_refused(images: Path, out: Path) -> None:
    with pytest.raises(DatasetError, match="--group-column needs a table"):
        listed(str(images), out, SourceColumns(group_column="camera"))


def test_a_tables_labels_are_text_as_they_stand(images: Path, tmp_path: Path) -> None:
    """01 and 1 are two classes."""
    names = itertools.cycle(["01", "1", "02"])
    source = write_csv(images, tmp_path, number=lambda n, path: next(names))
    listing = list_images(
        source, SourceColumns(label_column="number"), str(tmp_path / "data"), map
    )
    assert listing.classes == ("01", "02", "1")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csvs_delimiter_and_blanks_in_its_header_do_not_matter(
    images: Path, tmp_path: Path, delimiter: str
) -> None:
    lines = [f" path{delimiter} label "]
    for file in files(images):
        lines.append(f"{file.relative_to(tmp_path)}{delimiter} {file.parent.name}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    listing = list_images(
        str(tmp_path / "table.csv"), SourceColumns(), str(tmp_path / "data"), map
    )
    assert listing.classes == ("dahlia", "garden", "roof") and len(listing.images) == 24


def test_whole_numbers_of_a_float_column_are_integers(images: Path, tmp_path: Path) -> None:
    labels = itertools.cycle(["10.0", "2", "0.0"])
    source = write_csv(images, tmp_path, number=lambda n, path: next(labels))
    columns = SourceColumns(label_column="number")
    assert list_images(source, columns, str(tmp_path / "data"), map).classes == ("0", "2", "10")
    (tmp_path / "names.txt").write_text("\n".join(f"name {n}" for n in range(11)))
    named = SourceColumns(label_column="number", classes=str(tmp_path / "names.txt"))
    listing = list_images(source, named, str(tmp_path / "data"), map)
    assert set(listing.images["label"].to_pylist()) == {0, 2, 10} and len(listing.classes) == 11
    (tmp_path / "names.txt").write_text("0.0\n10.0\n2\n")
    listing = list_images(source, named, str(tmp_path / "data"), map)
    assert listing.classes == ("0.0", "10.0", "2")
    assert listing.images["label"].to_pylist()[:3] == [1, 2, 0]


def write_one_hot(images: Path, tmp_path: Path, *, several: bool = False) -> str:
    """A table with one column per class; of every second image all classes if `several`."""
    names = ["dahlia", "garden", "roof"]
    lines = [",".join(["path", *names])]
    for number, file in enumerate(files(images)):
        flags = [str(int(n == file.parent.name or (several and number % 2))) for n in names]
        lines.append(",".join([str(file.relative_to(tmp_path)), *flags]))
    (tmp_path / "hot.csv").write_text("\n".join(lines))
    return str(tmp_path / "hot.csv")


def test_one_column_per_class_is_a_label(images: Path, tmp_path: Path, out: Path) -> None:
    source = write_one_hot(images, tmp_path)
    assert contents(listed(source, out)) == contents(listed(str(images), out))
    several = write_one_hot(images, tmp_path, several=True)
    with pytest.raises(DatasetError, match=r"one column per class, and 3 classes in row 2"):
        listed(several, out)
    listing = listed(several, out, SourceColumns(task="multilabel"))
    assert listing.classes == ("dahlia", "garden", "roof")
    assert {tuple(label) for label in listing.images["label"].to_pylist()} == {
        (0,), (1,), (2,), (0, 1, 2)
    }  # fmt: skip


def test_a_table_without_labels_is_refused_also_with_one_column_of_numbers(
    images: Path, tmp_path: Path, out: Path
) -> None:
    source = write_csv(images, tmp_path, blurred=lambda n, path: n % 2)
    text = Path(source).read_text().replace("label", "kind", 1)
    Path(source).write_text(text)
    with pytest.raises(DatasetError, match="has no column 'label', only path, kind, blurred"):
        listed(source, out)


@pytest.mark.parametrize("mark", [",", ";", " "])
def test_another_separator_of_labels_is_named(
    images: Path, tmp_path: Path, out: Path, mark: str
) -> None:
    def label(number: int, path: Path) -> str:
        return f"{path.parent.name}{mark}old" if number % 2 else path.parent.name

    source = write_csv(images, tmp_path, tags=label)
    columns = SourceColumns(label_column="tags", task="multilabel")
    (note,) = listed(source, out, columns).notes
    assert f"12 labels contain {mark!r}" in note
    assert f"pack again with --label-separator {mark!r} (now '|')" in note
    right = replace(columns, label_separator=mark)
    assert not listed(source, out, right).notes
    assert listed(source, out, right).classes == ("dahlia", "garden", "old", "roof")


def test_class_names_with_blanks_and_several_labels_need_no_note(
    images: Path, tmp_path: Path, out: Path
) -> None:
    source = write_csv(images, tmp_path, tags=lambda n, path: f"big {path.parent.name}|old one")
    columns = SourceColumns(label_column="tags", task="multilabel")
    assert not listed(source, out, columns).notes


@pytest.mark.parametrize("column", ["image", "img", "jpg"])
@pytest.mark.parametrize("binary", [True, False])
def test_images_may_be_in_the_only_column_that_can_have_them(
    images: Path, out: Path, column: str, *, binary: bool
) -> None:
    result = files(images)
    table = pa.table(
        {
            column: [
                file.read_bytes() if binary else {"bytes": file.read_bytes(), "path": file.name}
                for file in result
            ],
            "label": [file.parent.name for file in result],
        }
    )
    pq.write_table(table, out / "a.parquet")
    expected = contents(listed(str(images), out))
    assert contents(listed(str(out), out)) == expected
    assert contents(listed(str(out / "a.parquet"), out)) == expected


def test_two_columns_that_may_have_images_are_refused(images: Path, out: Path) -> None:
    data = files(images)[0].read_bytes()
    pq.write_table(pa.table({"left": [data], "right": [data], "label": ["a"]}), out / "a.parquet")
    with pytest.raises(DatasetError, match="expected one column of images"):
        listed(str(out), out)


def test_a_table_of_paths_may_have_a_column_of_bytes(
    images: Path, tmp_path: Path, out: Path
) -> None:
    result = files(images)
    columns = {
        "path": [str(f) for f in result],
        "label": [f.parent.name for f in result],
        "embedding": [b"1"] * len(result),
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    expected = contents(listed(str(images), out))
    assert contents(listed(str(tmp_path / "table.parquet"), out)) == expected


@pytest.mark.parametrize("place", ["loose.jpg", "val/loose.jpg"])
def test_an_image_outside_of_class_folders_is_refused(
    images: Path, tmp_path: Path, place: str
) -> None:
    """Rather than left out, or splits taken for classes."""
    source = tmp_path / "source"
    for split in ("train", "val"):
        shutil.copytree(images, source / split)
    shutil.copy(files(images)[0], source / place)
    with pytest.raises(DatasetError, match=f"outside of class folders.*{place}"):
        list_images(str(source), SourceColumns(), str(tmp_path / "data"), map)


def test_other_class_names_are_another_listing(images: Path, tmp_path: Path) -> None:
    folders = sorted({file.parent.name for file in files(images)})
    source = write_csv(images, tmp_path, number=lambda n, path: folders.index(path.parent.name))
    digests = set()
    for letters in ("abcdefgh", "hgfedcba"):
        (tmp_path / "names.txt").write_text("\n".join(letters[: len(folders)]))
        columns = SourceColumns(label_column="number", classes=str(tmp_path / "names.txt"))
        digests.add(list_images(source, columns, str(tmp_path / "data"), map).digest)
    assert len(digests) == 2
