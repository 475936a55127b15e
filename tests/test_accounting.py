"""Law 9: every entry of a source is packed, quarantined or set aside with a reason."""

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from effnet_ray import storage
from effnet_ray.cli.pack import pack_job
from effnet_ray.errors import DatasetError, StorageError
from effnet_ray.packing import report
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.packing.results import QUARANTINE


def picture(number: int, kind: str) -> bytes:
    """A small image, unlike those of other numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def content(kind: str, number: int) -> bytes:
    if kind in ("JPEG", "PNG", "WEBP", "PPM", "TIFF", "BMP", "GIF"):
        return picture(number, kind)
    return {
        "text": b"a text of some length, number %d" % number,
        "empty": b"",
        "cut": picture(number, "PNG")[:60],
        "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf%d" % number,
    }[kind]


NAMES = (
    "1.jpg",
    "IMG_1",
    "2.JPG.jpeg",
    "3.jpe",
    "4.ppm",
    "5.png",
    "6.txt",
    "Thumbs.db",
    ".DS_Store",
    "._1.jpg",
    "a b.png",
    "7.jpg.1",
    "line\nbreak.jpg",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "8.heic",
)
KINDS = ("JPEG", "PNG", "WEBP", "PPM", "TIFF", "BMP", "GIF", "text", "empty", "cut", "AVIF")
FOLDERS = (
    "cat",
    "dog",
    "Cat",
    "na",
    "1",
    "caf\u00e9",
    "cafe\u0301",
    "a b",
    "train",
    "val",
    "unlabeled",
    "annotations",
    ".git",
    "deep/er",
    "cat/more",
    "dog/train",
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Two classes with images to train and evaluate on, and whatever else people have there."""
    splits = draw(st.sampled_from([("",), ("",), ("train/", "val/"), ("Train/", "test/")]))
    places = [f"{split}{label}" for split in splits for label in ("cat", "dog")]
    tops = st.sampled_from(FOLDERS)
    inside = st.builds("{}/{}".format, st.sampled_from(places), tops)
    beside = st.builds("{}{}".format, st.sampled_from(splits), tops)
    names, kinds_of_files = st.sampled_from(NAMES), st.sampled_from(KINDS)
    anything = st.tuples(st.one_of(inside, beside, inside), names, kinds_of_files)
    stray = st.tuples(
        st.sampled_from(["", "docs", ".git"]),
        st.sampled_from(["6.txt", ".DS_Store", "Thumbs.db", "IMG_1"]),
        st.just("text"),
    )
    in_classes = st.tuples(st.one_of(inside, st.sampled_from(places)), names, kinds_of_files)
    files = st.lists(st.one_of(in_classes, in_classes, in_classes, anything, stray), max_size=10)
    folders = st.one_of(inside, beside, st.sampled_from(places))
    kinds = st.sampled_from(["file", "folder", "loop"])
    return {
        "places": places,
        "files": draw(files),
        "links": draw(st.lists(st.tuples(folders, kinds, st.sampled_from(places)), max_size=2)),
        "empty": draw(st.lists(folders, max_size=1)) if draw(st.booleans()) else [],
    }


def build(tree: dict[str, Any], root: Path) -> None:
    number = 0
    for place in tree["places"]:
        (root / place).mkdir(parents=True)
        for _ in range(3):
            number += 1
            (root / place / f"base {number}.jpg").write_bytes(picture(number, "PNG"))
    for folder, name, kind in tree["files"]:
        number += 1
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(content(kind, number))
    for index, (folder, kind, place) in enumerate(tree["links"]):
        (root / folder).mkdir(parents=True, exist_ok=True)
        target = {
            "file": root / place / f"base {tree['places'].index(place) * 3 + 1}.jpg",
            "folder": root / place,
            "loop": root,
        }[kind]
        (root / folder / f"link {index}").symlink_to(target)
    for folder in tree["empty"]:
        (root / folder).mkdir(parents=True, exist_ok=True)


def walk(folder: Path, name: str = "", above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Every file that can be reached, but for links to a folder that the path goes through."""
    above = (*above, folder.resolve())
    for entry in folder.iterdir():
        path = f"{name}{entry.name}"
        if entry.is_file():
            yield path
        elif not (entry.is_symlink() and any(a.is_relative_to(entry.resolve()) for a in above)):
            yield from walk(entry, f"{path}/", above)


def accounted(out: str) -> Counter[str]:
    """Every path in the shards, the quarantine and the report."""
    packed = [
        image["path"]
        for split in ("train", "eval", "test")
        for path in storage.sizes(storage.join(out, split))
        for image in read_table(storage.join(out, split, path))["image"].to_pylist()
    ]
    quarantined = read_table(storage.join(out, QUARANTINE))["path"].to_pylist()
    set_aside = [entry.path for entry in report.load(out).set_aside]
    return Counter(packed + quarantined + set_aside)


def read_table(uri: str) -> Any:
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def test_every_file_of_any_tree_is_accounted_for_or_the_source_is_refused() -> None:
    refusals, packed = Counter[str](), 0

    @settings(max_examples=200)
    @given(trees())
    def check(tree: dict[str, Any]) -> None:
        nonlocal packed
        with tempfile.TemporaryDirectory() as folder:
            root, out = Path(folder, "source"), str(Path(folder, "out"))
            build(tree, root)
            try:
                pack(str(root), out, Packing(seed=1))
            except (DatasetError, StorageError) as error:
                assert ": " in str(error)  # what was found, and what to do
                refusals[str(error).replace(folder, "")[:60]] += 1
                return
            packed += 1
            files = Counter(walk(root))
            assert accounted(out) == files
            made = report.load(out)
            assert made.seen == files.total()
            assert all(entry.reason for entry in made.set_aside)

    check()
    assert packed >= 100, refusals
    assert len(refusals) >= 3  # the trees are odd enough for several


def test_a_bucket_is_accounted_for_as_a_folder_is(s3: str, tmp_path: Path) -> None:
    tree = {
        "places": ["cat", "dog"],
        "files": [("cat", name, "JPEG") for name in NAMES if "\n" not in name]
        + [("dog", "9.txt", "text")],
        "links": [],
        "empty": [],
    }
    build(tree, tmp_path / "source")
    files = list(walk(tmp_path / "source"))
    for path in files:
        storage.upload(tmp_path / "source" / path, f"{s3}/source/{path}")
    here = pack(str(tmp_path / "source"), str(tmp_path / "out"))
    there = pack(f"{s3}/source", f"{s3}/out")
    assert here.fingerprint == there.fingerprint
    assert accounted(f"{s3}/out") == accounted(str(tmp_path / "out")) == Counter(files)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["jpg", "png", "cls", "json", "npy", "mask.png", ""]),
            st.sampled_from(["file", "file", "file", "link", "folder"]),
        ),
        max_size=12,
    )
)
def test_every_member_of_a_tar_is_accounted_for(more: list[tuple[int, str, str]]) -> None:
    members: list[tuple[str, str, bytes]] = []
    for number in range(8):
        members.append((f"{number:02d}.jpg", "file", picture(number, "JPEG")))
        members.append((f"{number:02d}.cls", "file", str(number % 2).encode()))
    for index, (number, suffix, kind) in enumerate(more):
        sample = number if number < 4 else 20 + number  # mostly beside an image with its label
        name = f"{sample:02d}.{suffix}" if suffix else f".hidden{index}"
        data = json.dumps({"label": "1"}).encode() if suffix == "json" else b"0"
        members.append((name, kind, data))
    members.sort(key=lambda member: member[0].partition(".")[0])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        (source / "README.md").write_text("about the images")
        kinds = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE}
        with tarfile.open(source / "000.tar", "w") as tar:
            for name, kind, data in members:
                info = tarfile.TarInfo(name)
                info.type = kinds[kind]
                info.size = len(data) if kind == "file" else 0
                tar.addfile(info, io.BytesIO(data))
        out = str(Path(folder, "out"))
        try:
            pack(str(source), out)
        except DatasetError as error:
            assert re.search(r"has no label for 2|lists 000.tar#2|no image named 2", str(error))
            return
        with_image = {
            name.partition(".")[0]
            for name, kind, _ in members
            if kind == "file" and name.partition(".")[2] in ("jpg", "png")
        }
        expected = Counter(
            f"000.tar#{name}"
            for name, kind, _ in members
            if kind == "link"
            or (
                kind == "file"
                and not (name.endswith(("cls", "json")) and name.partition(".")[0] in with_image)
            )
        )
        assert accounted(out) == expected + Counter(["README.md"])


def test_the_last_line_counts_every_entry(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [("cat", "6.txt", "text"), ("dog", "5.png", "cut"), ("docs", "6.txt", "text")]
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": files, "links": [], "empty": []}
    build(tree, tmp_path / "source")
    (tmp_path / "source/cat/.hidden").write_bytes(b"")
    arguments = ["--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    for _ in range(2):  # packing again reports the same
        line = pack_job(arguments)
        assert (line["seen"], line["quarantined"], line["set_aside"]) == (10, 1, 3)
        assert sum(line["images"].values()) == 6
        content = json.loads(Path(line["report"]).read_text())
        assert content["seen"] == 10
        assert content["set_aside"] == [
            {"path": "cat/.hidden", "reason": "hidden: a name in its path starts with a dot"},
            {"path": "cat/6.txt", "reason": "not an image (.txt)"},
            {"path": "docs/6.txt", "reason": "not an image (.txt)"},
        ]
    printed = " ".join(capfd.readouterr().err.split())
    assert "set aside 3 (2 × not an image (.txt), 1 × hidden" in printed
    assert "cat/.hidden, cat/6.txt, docs/6.txt" in printed
    assert "without images docs" in printed


def test_an_empty_class_folder_is_refused_unless_left_out(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "places": ["cat", "dog"], "files": [], "links": [], "empty": ["bird"]
    }  # fmt: skip
    build(tree, tmp_path / "source")
    with pytest.raises(DatasetError, match=r"bird is empty: add images of the class 'bird'"):
        pack(str(tmp_path / "source"), str(tmp_path / "out"))
    packing = Packing(allow_empty_classes=True)
    manifest = pack(str(tmp_path / "source"), str(tmp_path / "out"), packing)
    assert manifest.classes == ("cat", "dog")
    assert report.load(str(tmp_path / "out")).without_images == ("bird",)


def test_an_empty_folder_of_a_split_is_named_if_the_class_has_images(tmp_path: Path) -> None:
    places = ["train/cat", "train/dog", "val/cat"]
    tree: dict[str, Any] = {"places": places, "files": [], "links": [], "empty": ["val/dog"]}
    build(tree, tmp_path / "source")
    pack(str(tmp_path / "source"), str(tmp_path / "out"))
    assert report.load(str(tmp_path / "out")).without_images == ("val/dog",)


def test_what_a_zip_of_macos_leaves_is_no_class(tmp_path: Path) -> None:
    files = [("__MACOSX/cat", "._1.jpg", "text")]
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": files, "links": [], "empty": []}
    build(tree, tmp_path / "source")
    pack(str(tmp_path / "source"), str(tmp_path / "out"))
    made = report.load(str(tmp_path / "out"))
    assert made.without_images == () and len(made.set_aside) == 1


def test_a_data_set_written_into_its_source_is_no_empty_class(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": [], "links": [], "empty": ["out"]}
    build(tree, tmp_path)
    manifest = pack(str(tmp_path), str(tmp_path / "out/data"))
    assert manifest.classes == ("cat", "dog")


def test_archives_beside_class_folders_are_refused(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": [], "links": [], "empty": []}
    build(tree, tmp_path)
    shutil.make_archive(str(tmp_path / "backup"), "tar", tmp_path / "cat")
    with pytest.raises(DatasetError, match=r"has the archive backup.tar and, beside archives"):
        pack(str(tmp_path), str(tmp_path / "out"))


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": [], "links": [], "empty": []}
    build(tree, tmp_path / "source")
    odd = os.fsencode(tmp_path / "source/cat") + b"/caf\xe9.jpg"
    with open(odd, "wb") as file:
        file.write(picture(0, "PNG"))
    with pytest.raises(DatasetError, match=r"name is not valid UTF-8 \(cat/caf\?.jpg\)"):
        pack(str(tmp_path / "source"), str(tmp_path / "out"))


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": [], "links": [], "empty": []}
    build(tree, tmp_path / "source")
    (tmp_path / "source/cat/.own").symlink_to(".own")
    assert pack(str(tmp_path / "source"), str(tmp_path / "out")).quarantined == 0
    (tmp_path / "source/cat/own").symlink_to("own")
    with pytest.raises(StorageError, match=r"cat/own is a link to own, which .* leads back to it"):
        pack(str(tmp_path / "source"), str(tmp_path / "other"))


def test_an_editors_lock_is_no_dangling_link(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"places": ["cat", "dog"], "files": [], "links": [], "empty": []}
    build(tree, tmp_path / "source")
    (tmp_path / "source/cat/.#notes.txt").symlink_to("someone@host.123")
    assert pack(str(tmp_path / "source"), str(tmp_path / "out")).quarantined == 0
