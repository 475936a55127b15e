"""Shared by tests: forge."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from effnet_ray.storage import checksummed_json
from support.releases import released


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one release, birds@v1. Read only."""
    folder = tmp_path_factory.mktemp("released")
    released(folder)
    return folder / "store"


@pytest.fixture
def release(store: Path, tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return Path(shutil.copytree(store / "birds/v0001", tmp_path / "copy"))


def forge(release: Path, name: str, data: bytes | None) -> None:
    """Replace a file and what is sealed of it, as whoever can write to a store can.

    None: take both away.
    """
    path, record = release / name, release / "release.json"
    told = json.loads(record.read_text())
    del told["files"][name], told["sizes"][name], told["sha256"]
    path.unlink()
    if data is not None:
        path.write_bytes(data)
        told["files"][name] = hashlib.sha256(data).hexdigest()
        told["sizes"][name] = len(data)
    record.write_bytes(checksummed_json.seal(told))
