"""A storage that fails now and then changes nothing; one that stays down is reported soon."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.faults import KINDS, QUICK, Faults, Proxy, proxy
from support.laws import RECIPE
from support.servers import fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.data import manifest as manifests, parquet_reads
from effnet_ray.data.chunks import ChunkTask, Dataset, load_chunks
from effnet_ray.errors import StorageError
from effnet_ray.packing.pack import pack
from effnet_ray.release.store import ModelStore
from effnet_ray.storage import retry

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def server(rclone: str) -> Iterator[Proxy]:
    """A proxy that every S3 client goes through; rclone checks that signatures survive it."""
    with proxy(rclone) as running, s3_environment(running.endpoint):
        yield running


@pytest.fixture
def faults(server: Proxy) -> Iterator[Callable[..., Faults]]:
    """Sets what fails from now on."""

    def fail(*kinds: str, **how: Any) -> Faults:
        server.faults = Faults(kinds, **how)
        return server.faults

    yield fail
    server.faults = Faults()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of seconds instead of a minute."""
    monkeypatch.setattr(retry, "ATTEMPT_S", 1.0)
    monkeypatch.setattr(retry, "GIVE_UP_S", 1.2)


@pytest.fixture
def dataset(server: Proxy, packed: Path) -> Dataset:
    """The photographs in a bucket."""
    data = f"{fresh_bucket()}/data"
    for path in storage.sizes(str(packed)):
        storage.upload(packed / path, storage.join(data, path))
    recipe = replace(RECIPE, limit=None)
    spec = recipe.variant_spec.input_spec()
    settled = recipe.resolved(spec, workers=1, on_gpu=False)
    return Dataset(manifests.load(data), data, settled, spec)


def read_all(dataset: Dataset) -> str:
    """SHA-256 of every view, through listing, footers and row groups."""
    parquet_reads.forget_footers()
    manifests.check_trainable(dataset.manifest, dataset.data)
    seen = hashlib.sha256()
    for lane in range(dataset.plan.lanes):
        for block in load_chunks(dataset, [ChunkTask("train", 0, lane, 0, 0)]):
            assert not any(block["bad"])
            seen.update(block["image"].tobytes())
    return seen.hexdigest()


def write_all(place: str, tmp_path: Path) -> dict[str, bytes]:
    """Writes of all kinds; what is there then."""
    local = tmp_path / "file"
    local.write_bytes(bytes(range(256)) * 40)
    for number in range(4):
        storage.write_bytes(storage.join(place, f"record {number}"), b"r" * number, exclusive=True)
        storage.write_bytes(storage.join(place, "pointer"), str(number).encode())
        storage.upload(local, storage.join(place, f"files/{number}"))
    storage.delete(storage.join(place, "files/3"))
    store = ModelStore(storage.join(place, "store"), single_writer=True)
    for _ in range(2):
        store.publish("model", {"weights": b"w" * 999}, {"run": "r"})
    return {path: storage.read_bytes(storage.join(place, path)) for path in storage.sizes(place)}


def without_times(found: dict[str, bytes]) -> dict[str, bytes]:
    """All but what tells when it was written."""
    return {
        path: data for path, data in found.items() if not re.search("release.json|claims/", path)
    }


def mixtures() -> list[Any]:
    """All quick kinds in turn; every kind by itself takes long."""
    alone = [pytest.param((kind,), id=kind, marks=pytest.mark.long) for kind in KINDS]
    return [QUICK, *alone]


@pytest.mark.parametrize("kinds", mixtures(), ids=" ".join)
def test_a_fifth_of_reads_failing_changes_nothing(
    faults: Callable[..., Faults],
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    kinds: Sequence[str],
) -> None:
    monkeypatch.setattr(retry, "ATTEMPT_S", 0.5)
    expected = read_all(dataset)
    made = faults(*kinds, share=0.2)
    times = 2 if len(kinds) == 1 else 8
    assert [read_all(dataset) for _ in range(times)] == [expected] * times
    assert made.made >= times / 2


@pytest.mark.parametrize("kinds", mixtures(), ids=" ".join)
def test_a_fifth_of_writes_failing_changes_nothing(
    server: Proxy,
    faults: Callable[..., Faults],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kinds: Sequence[str],
) -> None:
    monkeypatch.setattr(retry, "ATTEMPT_S", 0.5)
    expected = write_all(f"{fresh_bucket()}/a", tmp_path)
    place = f"{fresh_bucket()}/a"
    made = faults(*kinds, share=0.2)
    found = write_all(place, tmp_path)
    assert made.made >= 4
    assert without_times(found) == without_times(expected) and found.keys() == expected.keys()


DOORS: dict[str, Callable[[Dataset], object]] = {
    "list": lambda d: storage.sizes(d.data),
    "look": lambda d: storage.exists(storage.join(d.data, "x")),
    "read": lambda d: storage.read_bytes(storage.join(d.data, manifests.NAME)),
    "row group": lambda d: next(load_chunks(d, [ChunkTask("train", 0, 0, 0, 0)])),
    "write": lambda d: storage.write_bytes(storage.join(d.data, "x"), b"x" * 10_000),
    "publish": lambda d: ModelStore(d.data, True).publish("m", {"w": b"w"}, {"run": "r"}),
}


@pytest.mark.parametrize(
    ("door", "kind"),
    [
        *((door, "500") for door in DOORS),
        *(("row group", kind) for kind in KINDS if kind != "500"),
        *(
            pytest.param(door, kind, marks=pytest.mark.long)
            for kind in (*QUICK, "stall")
            for door in ("read", "write")
        ),
    ],
)
def test_what_stays_broken_is_told_with_the_object_and_what_to_do(
    faults: Callable[..., Faults], dataset: Dataset, hurried: None, door: str, kind: str
) -> None:
    parquet_reads.forget_footers()
    made = faults(kind, share=1)
    with pytest.raises(StorageError) as output:
        DOORS[door](dataset)
    assert made.made >= 2 or kind not in QUICK  # it was tried again
    assert dataset.data.split("/")[2] in str(output.value)
    assert "again" in str(output.value) or "check AWS_ENDPOINT_URL" in str(output.value)


@pytest.mark.long
@pytest.mark.parametrize("door", ["list", "read", "row group", "write", "publish"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_broken_is_told_within_a_minute(
    faults: Callable[..., Faults], dataset: Dataset, door: str, kind: str
) -> None:
    parquet_reads.forget_footers()
    faults(kind, share=1)
    begin = time.monotonic()
    with pytest.raises(StorageError):
        DOORS[door](dataset)
    assert time.monotonic() - begin <= 60


def test_an_object_that_was_never_there_is_not_waited_for(
    faults: Callable[..., Faults], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "GIVE_UP_S", 1e9)
    with pytest.raises(StorageError, match="it does not exist: check the key"):
        storage.read_bytes(storage.join(dataset.data, "absent"))


def test_a_bucket_that_cannot_be_looked_at_is_not_said_to_be_missing(
    faults: Callable[..., Faults], dataset: Dataset, hurried: None
) -> None:
    bucket = dataset.data.split("/")[2]

    def looks(method: str, path: str) -> bool:
        return method == "HEAD" and path.strip("/") == bucket

    made = faults("500", share=1, hits=looks)
    with pytest.raises(StorageError, match="it does not exist: check the key"):
        storage.read_bytes(storage.join(dataset.data, "absent"))
    assert made.made >= 2  # it was tried again


def test_packing_through_faults_is_the_same_data_set(
    server: Proxy, faults: Callable[..., Faults], photographs: Path, packed: Path
) -> None:
    bucket = fresh_bucket()
    for path in photographs.rglob("*.*"):
        storage.upload(path, f"{bucket}/images/{path.relative_to(photographs).as_posix()}")
    made = faults(*QUICK, share=0.2)
    manifest = pack(f"{bucket}/images", f"{bucket}/out")
    assert made.made >= 5
    assert manifest.fingerprint == pack(f"{bucket}/images", f"{bucket}/again").fingerprint
    assert sum(manifest.images.values()) == 24 and manifest.quarantined == 0
