"""Releases are complete or absent, verified, and never overwritten."""

import json
from pathlib import Path

import pytest

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format.record import verify_files

FILES = {"model.safetensors": b"weights", "config.json": b"{}"}


def test_versions_are_dense_and_files_verified(s3: str) -> None:
    store = ModelStore(s3, single_writer=True)
    first = store.publish("pets", FILES, {"run": "a"})
    second = store.publish("pets", FILES, {"run": "b"})
    assert (first.reference, second.reference) == ("pets@v1", "pets@v2")
    assert first.uri == f"{s3}/pets/v0001"
    assert store.find("pets@v2") == second


def test_publishing_the_same_run_twice_gives_the_release_that_is_there(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    assert store.publish("pets", FILES, {"run": "a"}) == store.publish("pets", FILES, {"run": "a"})
    assert store.versions("pets") == [1]


def test_a_folder_without_its_record_is_not_there(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    storage.write_bytes(str(tmp_path / "pets/v0001/model.safetensors"), b"half")
    assert store.versions("pets") == []
    with pytest.raises(ReleaseError, match=r"pets@v1 is not in .*; it has: no releases"):
        store.find("pets@v1")
    assert store.publish("pets", FILES, {"run": "a"}).version == 1


@pytest.mark.parametrize("file", sorted(FILES))
def test_an_altered_file_is_found(tmp_path: Path, file: str) -> None:
    store = ModelStore(str(tmp_path))
    release = store.publish("pets", FILES, {"run": "a"})
    Path(release.uri, file).write_bytes(b"other")
    with pytest.raises(ReleaseError, match=f"{file} .* was altered"):
        store.find("pets@v1")


def test_the_record_names_every_file(tmp_path: Path) -> None:
    release = ModelStore(str(tmp_path)).publish("pets", FILES, {"run": "a"})
    there = {p.name for p in Path(release.uri).iterdir()}
    record = json.loads(Path(release.uri, "release.json").read_text())
    assert there == {*record["files"], "release.json"}
    verify_files(release.uri)


def test_a_reference_that_is_none_is_refused(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    store.publish("pets", FILES, {"run": "a"})
    for reference in (
        "pets",
        "pets@",
        "@v1",
        "pets@v1@v1",
        "../pets@v1",
        "pets@../x",
        "pets@v1\n",
    ):
        with pytest.raises(ReleaseError, match=r"NAME@vN"):
            store.find(reference)
