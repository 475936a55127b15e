"""The manifest: whole after a round trip, refused when altered, held against its shards."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.errors import DatasetError

shards = st.builds(
    Shard,
    path=st.text(min_size=1),
    row_groups=st.lists(st.integers(1, 64), min_size=1, max_size=4).map(tuple),
    bytes=st.integers(2**20, 2**40),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
any_manifest = st.builds(
    Manifest,
    classes=st.lists(st.text(), min_size=2, max_size=4).map(tuple),
    splits=st.dictionaries(
        st.sampled_from(["train", "eval", "test"]), st.lists(shards, max_size=3).map(tuple)
    ),
    quarantined=st.integers(0, 99),
    made_from=st.dictionaries(st.text(), st.text() | st.integers() | st.floats(0, 1)),
)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    """A data set to damage."""
    return Path(shutil.copytree(packed, tmp_path / "copied"))


@given(any_manifest)
def test_a_manifest_is_read_as_it_was_written(tmp_path: Path, manifest: Manifest) -> None:
    uri = manifests.write(manifest, str(tmp_path))
    assert manifests.load(str(tmp_path)) == manifests.load(uri) == manifest
    assert manifests.folder(uri) == manifests.folder(str(tmp_path)) == str(tmp_path)


@given(any_manifest, st.text())
def test_the_fingerprint_knows_no_place_and_no_split_order(manifest: Manifest, uri: str) -> None:
    elsewhere = replace(
        manifest,
        made_from={"source": uri},
        splits=dict(reversed(manifest.splits.items())),
    )
    assert elsewhere.fingerprint == manifest.fingerprint


@given(any_manifest, any_manifest)
def test_other_content_has_another_fingerprint(one: Manifest, other: Manifest) -> None:
    def content(manifest: Manifest) -> object:
        return manifest.classes, {
            split: [replace(shard, bytes=2**20) for shard in shards]
            for split, shards in manifest.splits.items()
        }

    assert (one.fingerprint == other.fingerprint) == (content(one) == content(other))


@given(any_manifest, st.integers(1, 300))
def test_limited_is_the_first_images_of_each_split(manifest: Manifest, limit: int) -> None:
    limited = manifest.limited(limit)
    assert limited.images == {name: min(n, limit) for name, n in manifest.images.items()}
    for split in manifest.splits:
        for shard, its in zip(limited.splits[split], manifest.splits[split], strict=False):
            assert (shard.path, shard.sha256) == (its.path, its.sha256)
        kept, whole = limited.index(split).sizes, manifest.index(split).sizes
        assert kept[:-1].tolist() == whole[: len(kept[:-1])].tolist()
        assert all(kept <= whole[: len(kept)])
    assert manifest.limited(None) == manifest


@given(any_manifest)
def test_a_process_has_a_pickled_manifest_once(manifest: Manifest) -> None:
    """So that all tasks of a process share its indexes."""
    received = pickle.loads(pickle.dumps(manifest))
    assert received == manifest
    assert pickle.loads(pickle.dumps(received)) is received
    other = pickle.loads(pickle.dumps(replace(manifest, quarantined=manifest.quarantined + 1)))
    assert other != received and other.fingerprint == received.fingerprint


# --- damage


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of the JSON."""
    path = folder / manifests.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["garden", "dahlia", "roof"]},
        {"splits": {}},
        {"fingerprint": "0" * 64},
    ],
)
def test_an_altered_manifest_is_refused(copied: Path, changes: dict[str, Any]) -> None:
    edit(copied, **changes)
    with pytest.raises(DatasetError, match="altered"):
        manifests.load(str(copied))


def test_a_manifest_of_another_version_is_said_to_be_one(copied: Path) -> None:
    edit(copied, version=2)
    with pytest.raises(DatasetError, match=r"has format version 2, expected 1: pack again"):
        manifests.load(str(copied))


def test_a_manifest_with_an_unknown_field_is_refused(copied: Path) -> None:
    edit(copied, balance="none")
    with pytest.raises(DatasetError, match="balance"):
        manifests.load(str(copied))


@given(
    any_json | st.fixed_dictionaries({n: any_json for n in ("fingerprint", "version", "splits")})
)
def test_any_other_json_is_no_manifest(tmp_path: Path, content: object) -> None:
    (tmp_path / manifests.NAME).write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="pack again"):
        manifests.load(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"<html>"])
def test_what_is_no_json_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / manifests.NAME).write_bytes(content)
    with pytest.raises(DatasetError, match=r"not an effnet_ray manifest .*pack again"):
        manifests.load(str(tmp_path))


def test_where_no_data_set_is_the_person_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"no data set at {tmp_path}: .*effnet-ray pack"):
        manifests.load(str(tmp_path))
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.jpg").write_bytes(b"1")
    advice = f"has 1 files but no {manifests.NAME}.* --out {tmp_path}-packed, then pass --data"
    for uri in (tmp_path, tmp_path / manifests.NAME):
        with pytest.raises(DatasetError, match=f"^{tmp_path} {advice}"):
            manifests.load(str(uri))
    with pytest.raises(DatasetError, match=r"manifest.jsn is not a manifest: pass the data set's"):
        manifests.load(f"{tmp_path}/manifest.jsn")


def test_an_unharmed_data_set_passes(packed: Path) -> None:
    manifests.check_trainable(manifests.load(str(packed)), str(packed))
    manifests.check_trainable(manifests.load(str(packed)), str(packed / manifests.NAME))


def shard_of(folder: Path) -> tuple[Manifest, Path]:
    """The manifest and the file of its eval shard."""
    manifest = manifests.load(str(folder))
    return manifest, folder / manifest.splits["eval"][0].path


def test_a_missing_shard_is_named(copied: Path) -> None:
    manifest, path = shard_of(copied)
    path.unlink()
    with pytest.raises(DatasetError, match=r"shard eval/00000.parquet of .* is missing"):
        manifests.check_trainable(manifest, str(copied))


def test_a_resized_shard_is_named_with_both_sizes(copied: Path) -> None:
    manifest, path = shard_of(copied)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DatasetError, match=f"eval/00000.* {size + 1:,} bytes, .* {size:,}"):
        manifests.check_trainable(manifest, str(copied))


@settings(max_examples=10)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_anywhere_in_a_shard_is_found(
    packed: Path, tmp_path: Path, place: float, flip: int
) -> None:
    shutil.copytree(packed, tmp_path / "copied", dirs_exist_ok=True)
    manifest, path = shard_of(tmp_path / "copied")
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= flip
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"eval/00000.parquet .* its SHA-256 does not match"):
        manifests.check_trainable(manifest, str(tmp_path / "copied"))


@pytest.mark.parametrize("split", ["train", "eval"])
def test_an_empty_split_is_refused(packed: Path, split: str) -> None:
    manifest = manifests.load(str(packed))
    for splits in (
        {**manifest.splits, split: ()},
        {k: v for k, v in manifest.splits.items() if k != split},
    ):
        with pytest.raises(DatasetError, match=f"has no {split} images"):
            manifests.check_trainable(replace(manifest, splits=splits), str(packed))


def test_one_class_is_refused(packed: Path) -> None:
    manifest = replace(manifests.load(str(packed)), classes=("roof",))
    with pytest.raises(DatasetError, match=r"one class \(roof\)"):
        manifests.check_trainable(manifest, str(packed))
