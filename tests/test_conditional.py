"""Create-only writes and compare-and-swap hold; a server that ignores them is detected."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faults import Faults, proxy
from support.servers import fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, ConflictError
from effnet_ray.storage import conditional, retry


def test_files_are_written_and_listed_while_somebody_deletes_their_folder(tmp_path: Path) -> None:
    stop, folder = threading.Event(), f"{tmp_path}/folder"

    def delete() -> None:
        while not stop.wait(0.02):
            shutil.rmtree(folder, ignore_errors=True)

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        for number in range(300):
            storage.write_bytes(f"{folder}/{number}/x", b"x")
            assert set(storage.sizes(str(tmp_path)).values()) <= {1}
    finally:
        stop.set()
        deleting.join()


@pytest.mark.parametrize("server", ["disk", "moto", "rclone"])
def test_a_server_that_ignores_preconditions_is_found_out_and_nothing_is_left(
    request: pytest.FixtureRequest, tmp_path: Path, server: str
) -> None:
    if server == "disk":
        assert conditional.missing_guarantee(str(tmp_path)) == ""
        assert list(tmp_path.iterdir()) == []
        return
    with s3_environment(request.getfixturevalue(server)):
        bucket = fresh_bucket()
        result = conditional.missing_guarantee(bucket)
        assert (result == "") == (server == "moto")
        assert storage.entries(bucket, hidden=True) == {}


def test_a_disk_is_safe_though_the_keys_of_its_test_are_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, deleted = conditional.create, list[str]()

    def create_and_lose(uri: str, data: bytes) -> None:
        create(uri, data)
        if len(deleted) < conditional.ATTEMPTS - 1:
            shutil.rmtree(Path(uri).parent)
            deleted.append(uri)

    monkeypatch.setattr(conditional, "create", create_and_lose)
    assert conditional.missing_guarantee(str(tmp_path / "store")) == ""
    assert len(deleted) == conditional.ATTEMPTS - 1


def test_a_swap_needs_the_tag_of_what_is_there(shared: str) -> None:
    uri = f"{shared}/pointer"
    assert conditional.read(uri) is None
    with pytest.raises(ConflictError):
        conditional.swap(uri, b"0", "no tag")
    conditional.create(uri, b"1")
    with pytest.raises(AlreadyExistsError):
        conditional.create(uri, b"other")
    first = conditional.read(uri)
    assert first and first.data == b"1"
    conditional.swap(uri, b"2", first.etag)
    with pytest.raises(ConflictError):
        conditional.swap(uri, b"3", first.etag)
    assert storage.read_bytes(uri) == b"2"
    storage.delete(uri)
    with pytest.raises(ConflictError):
        conditional.swap(uri, b"4", first.etag)


@pytest.fixture(params=["disk", "moto"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place on each kind of storage that honours preconditions."""
    if request.param == "disk":
        yield str(tmp_path)
        return
    with s3_environment(request.getfixturevalue(request.param)):
        yield fresh_bucket()


def test_a_swap_whose_answer_is_lost_or_refused_by_a_race_happens_once(moto: str) -> None:
    with proxy(moto) as through, s3_environment(through.endpoint):
        uri = f"{fresh_bucket()}/pointer"
        conditional.create(uri, b"0")
        for number, kind in enumerate(["reset", "409 ConditionalRequestConflict"] * 3, 1):
            seen = conditional.read(uri)
            assert seen
            puts = iter([True])
            made = Faults(
                [kind], 1, lambda method, _, puts=puts: method == "PUT" and next(puts, False)
            )
            through.faults = made
            conditional.swap(uri, str(number).encode(), seen.etag)
            through.faults = Faults()
            assert storage.read_bytes(uri) == str(number).encode() and made.made == 1


def test_a_server_without_compare_and_swap_is_told_at_once(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "GIVE_UP_S", 1e9)
    with proxy(moto) as through, s3_environment(through.endpoint):
        bucket, puts = fresh_bucket(), iter(range(9))
        through.faults = Faults(
            ["501 NotImplemented"], share=1,
            hits=lambda method, _: method == "PUT" and next(puts) >= 2,
        )  # fmt: skip
        assert conditional.missing_guarantee(bucket) == "does not support If-Match"
