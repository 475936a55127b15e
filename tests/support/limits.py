"""Disks without space, and what writes to them: every writer of this package."""

import functools
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from effnet_ray import storage
from effnet_ray.data import feature_cache, manifest as manifests
from effnet_ray.data.chunks import BadImage
from effnet_ray.errors import EffnetRayError
from effnet_ray.packing.pack import pack
from effnet_ray.release.store import ModelStore
from effnet_ray.storage.local import PARTIAL
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.sweep_record import Trial
from effnet_ray.train import checkpoint, run_record, step_log
from support.finished_runs import result, run
from support.loop_worker import new_state, settled

FILLER = ".filler"
"""What fills a disk: hidden, so that no listing has it."""


@dataclass(frozen=True)
class Disk:
    """A small file system of its own."""

    folder: Path

    def fill(self, leave: int) -> None:
        """Leave so many free bytes."""
        free = os.statvfs(self.folder)
        size = max(0, free.f_bavail * free.f_frsize - leave)
        with (self.folder / FILLER).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size))

    def fill_inodes(self, leave: int) -> None:
        """Leave so many files that can be made."""
        (self.folder / FILLER).mkdir()
        for number in range(os.statvfs(self.folder).f_ffree - leave):
            (self.folder / FILLER / str(number)).touch()

    def remount(self, option: str) -> None:
        """Make it read-only (ro), or writable again (rw)."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)

    def empty(self, folder: str = FILLER) -> None:
        """Delete what fills it."""
        storage.delete(str(self.folder / folder))


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Disk]:
    """A tmpfs on a new folder; skips the test where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process cannot mount a small disk")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, as under a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass(frozen=True)
class Writer:
    """A writer, called with a folder."""

    write: Callable[[str], object]
    is_complete: Callable[[str], bool]
    """Whether a reader takes what is there for complete."""
    prepare: Callable[[str], object] = lambda folder: None
    """What must be there before."""


def write_or_refuse(writer: Writer, folder: str) -> str:
    """The sentence of the writer's error; empty if it wrote all. Nothing is half-written."""
    before = writer.is_complete(folder)
    try:
        writer.write(folder)
    except EffnetRayError as error:
        assert writer.is_complete(folder) == before, "a reader takes a part for the whole"
        partial = [path for path in storage.entries(folder, hidden=True) if PARTIAL in path]
        assert not partial, "temporary files stay"
        return str(error)
    assert writer.is_complete(folder)
    return ""


def _reads(read: Callable[[str], object]) -> Callable[[str], bool]:
    """Whether a reader of a folder finds something there."""

    def complete(folder: str) -> bool:
        try:
            return bool(read(folder))
        except EffnetRayError:
            return False

    return complete


def _is_packed(folder: str) -> bool:
    manifest = manifests.load(f"{folder}/data")
    manifests.check_trainable(manifest, f"{folder}/data")
    return True


@functools.cache
def _snapshot() -> checkpoint.Snapshot:
    return checkpoint.snapshot(new_state(settled()))


def _publish(folder: str, seed: int = 0) -> object:
    files = {"model.safetensors": bytes([seed]) * 20_000, "config.json": b"{}" * 3000}
    return ModelStore(f"{folder}/store").publish("birds", files, {"run": f"run {seed}"})


def _published(folder: str) -> bool:
    return ModelStore(f"{folder}/store").versions("birds") == [1]


def _publish_two(folder: str) -> None:
    _publish(folder, 1)
    _publish(folder, 2)


def _promote(folder: str) -> object:
    return ModelStore(f"{folder}/store").promote("birds@v2", "prod")


def _promoted(folder: str) -> bool:
    return ModelStore(f"{folder}/store").resolve("birds@prod")[1] == 2


def _delete(folder: str) -> None:
    store = ModelStore(f"{folder}/store")
    if store.model_folder("birds").deleted:
        store.gc(0)  # what finishes a deletion that began
    else:
        store.delete("birds@v1", force=True)


def _deleted(folder: str) -> bool:
    return ModelStore(f"{folder}/store").versions("birds") == [2]


def _cache_features(folder: str) -> None:
    draw = np.random.default_rng(0)
    rows = feature_cache.FeatureRows(
        draw.random((64, 100), dtype=np.float32), np.zeros(64, np.int64), np.arange(64), [""] * 64
    )
    name = feature_cache.file_name(0)
    feature_cache.write(f"{folder}/cache/{name}", [rows])
    feature_cache.write_record(f"{folder}/cache", [name])


TRIAL = Trial(number=1, variant="b0", settings={}, state="running", run="s-1", reason="x" * 5000)


def writers(images: str) -> dict[str, Writer]:
    """Every writer; `images`: a folder to pack."""
    bad = {7: BadImage("7.png", "truncated " * 500, "0" * 64)}
    return {
        "pack": Writer(lambda folder: pack(images, f"{folder}/data"), _reads(_is_packed)),
        "checkpoint": Writer(
            lambda folder: checkpoint.write(_snapshot(), f"{folder}/checkpoints"),
            _reads(lambda folder: checkpoint.newest(f"{folder}/checkpoints", lambda _: None)),
        ),
        "run record": Writer(
            lambda folder: run_record.create(run(), f"{folder}/run"),
            _reads(lambda folder: run_record.load(f"{folder}/run")),
        ),
        "result": Writer(
            lambda folder: run_record.write_result(result(f"{folder}/run", "x")),
            _reads(lambda folder: run_record.load_result(f"{folder}/run")),
        ),
        "audit": Writer(
            lambda folder: step_log.write_audit(
                f"{folder}/audit", [(i, 1.0) for i in range(5000)], epoch=0, step=1, rank=0
            ),
            lambda folder: storage.sizes(f"{folder}/audit") != {},
        ),
        "quarantine": Writer(
            lambda folder: step_log.write_quarantine(
                f"{folder}/bad", bad, split="train", epoch=0, step=1, rank=0
            ),
            lambda folder: storage.sizes(f"{folder}/bad") != {},
        ),
        "publish": Writer(_publish, _reads(_published)),
        "promote": Writer(_promote, _reads(_promoted), _publish_two),
        "delete": Writer(_delete, _reads(_deleted), _publish_two),
        "features": Writer(
            _cache_features, lambda folder: bool(feature_cache.read_record(f"{folder}/cache"))
        ),
        "trial": Writer(
            lambda folder: sweep_record.write_trial(TRIAL, f"{folder}/sweep"),
            _reads(lambda folder: sweep_record.load_trials(f"{folder}/sweep")),
        ),
        "outcome": Writer(
            lambda folder: sweep_record.write_outcome({"x": "y" * 5000}, f"{folder}/sweep"),
            _reads(lambda folder: sweep_record.has_outcome(f"{folder}/sweep")),
        ),
    }


WRITERS = tuple(writers(""))
assert torch  # imported once, before any limit is set
