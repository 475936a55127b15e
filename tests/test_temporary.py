"""What a killed process leaves in TMPDIR is deleted by the next one, and nothing else is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effnet_ray.storage.temporary import ABANDONED_S, LOCK, temporary_folder

WRITES = """
import os, sys, time
from effnet_ray.storage.temporary import temporary_folder
with temporary_folder("checkpoint") as folder:
    (folder / "weights").write_bytes(b"1" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def writer() -> tuple[subprocess.Popen[str], Path]:
    """A process that has written to a temporary folder, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def age(path: Path) -> None:
    """Make the folder of `files` old."""
    then = time.time() - 2 * ABANDONED_S
    os.utime(path.parent / LOCK, (then, then))


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_the_folder_of_a_killed_process_is_deleted_once_it_is_old(folder: Path) -> None:
    process, left = writer()
    kill(process)
    with temporary_folder("other"):
        assert left.exists()
    age(left)
    with temporary_folder("other") as own:
        assert not left.parent.exists() and own.exists()
    assert list(folder.iterdir()) == []


def test_the_folder_of_a_living_process_stays_however_old_it_is() -> None:
    process, written = writer()
    try:
        age(written)
        with temporary_folder("other"):
            assert (written / "weights").stat().st_size == 1000
    finally:
        kill(process)


def test_a_users_own_folder_stays(folder: Path) -> None:
    own = folder / "effnet-photos" / "files"
    own.mkdir(parents=True)
    os.utime(own.parent, (0, 0))
    with temporary_folder("other"):
        assert own.exists()
