"""One contract for disk, rclone and moto, and the messages of storage errors."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import ClientError
from support.servers import KEY, SECRET, fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, StorageError
from effnet_ray.storage import local, s3, s3_errors


@pytest.fixture(scope="module", params=["disk", "rclone", "moto"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kind of storage in turn; its clients are made once, which takes a while."""
    if request.param == "disk":
        yield request.param
    else:
        with s3_environment(request.getfixturevalue(request.param)):
            yield request.param


@pytest.fixture
def place(kind: str, tmp_path: Path) -> str:
    """An empty folder."""
    return f"{tmp_path if kind == 'disk' else fresh_bucket()}/place"


@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 50_000])
def test_what_is_written_is_read_and_can_be_replaced(place: str, data: bytes) -> None:
    uri = storage.join(place, "a", "b.bin")
    assert not storage.exists(uri)
    for content in (b"before", data):
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    assert storage.exists(uri) and storage.exists(storage.join(place, "a"))


def test_an_exclusive_write_never_replaces(place: str) -> None:
    uri = storage.join(place, "record.json")
    storage.write_bytes(uri, b"first", exclusive=True)
    with pytest.raises(AlreadyExistsError):
        storage.write_bytes(uri, b"second", exclusive=True)
    assert storage.read_bytes(uri) == b"first"


def test_listing_is_relative_sorted_and_without_neighbours(place: str) -> None:
    names = ["b/c/2.txt", "b-c/1.txt", "b.txt", "a/é ü.txt", "a b/+&=.txt"]
    for size, name in enumerate(names):
        storage.write_bytes(storage.join(place, name), b"x" * size)
    storage.write_bytes(f"{place}-beside/no.txt", b"")
    expected = {name: size for size, name in enumerate(names)}
    for uri in (place, f"{place}/"):
        result = storage.sizes(uri)
        assert result == expected
        assert list(result) == sorted(result)
    assert storage.sizes(storage.join(place, "b")) == {"c/2.txt": 0}


def test_hidden_files_are_listed_nowhere(place: str) -> None:
    for name in ("a/._1.jpg", ".cache/1.jpg", "a/1.jpg"):
        storage.write_bytes(storage.join(place, name), b"")
    assert list(storage.sizes(place)) == ["a/1.jpg"]


def test_folders_are_the_folders_directly_below(place: str) -> None:
    assert storage.folders(place) == []
    for name in ("v2/x/y", "v10/x", "file"):
        storage.write_bytes(storage.join(place, name), b"")
    assert storage.folders(place) == ["v10", "v2"]


def test_listing_nothing_is_empty_and_deleting_nothing_is_well(place: str) -> None:
    assert storage.sizes(place) == {}
    storage.delete(place)


def test_deleting_takes_a_file_or_a_folder_and_no_neighbour(place: str) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "c", "cd"):
        storage.write_bytes(storage.join(place, name), b"")
    storage.delete(storage.join(place, "a"))
    storage.delete(storage.join(place, "c"))
    assert list(storage.sizes(place)) == ["ab/3", "cd"]


def test_a_folder_into_which_another_process_writes_can_be_deleted(tmp_path: Path) -> None:
    """What is written meanwhile may stay, as on S3."""
    folder, over = str(tmp_path / "shared"), threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            storage.write_bytes(f"{folder}/{number % 50}/file", b"")

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write) for _ in range(3)]
        try:
            for _ in range(300):
                storage.delete(folder)
        finally:
            over.set()
        for writer in writers:
            writer.result()
    storage.delete(folder)
    assert not storage.exists(folder)


def test_deleting_files_takes_those_named_that_exist(place: str) -> None:
    for name in ("1", "2", "3", "a/1"):
        storage.write_bytes(storage.join(place, name), b"")
    storage.delete_files(place, ["1", "3", "absent"])
    assert list(storage.sizes(place)) == ["2", "a/1"]
    storage.delete_files(place, [])


def test_files_travel_both_ways_whole(place: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(300_000))
    storage.upload(there, storage.join(place, "x/file"))
    storage.download(storage.join(place, "x/file"), back)
    assert back.read_bytes() == there.read_bytes()
    assert storage.sizes(place) == {"x/file": 300_000}


def test_arrow_reads_what_storage_wrote(place: str) -> None:
    uri = storage.join(place, "file")
    storage.write_bytes(uri, b"0123456789")
    filesystem, path = storage.arrow_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        assert file.read_at(4, 3) == b"3456"


def test_a_missing_object_is_said_to_be_missing(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "nothing")
    storage.write_bytes(storage.join(place, "something"), b"")
    for attempt in (storage.read_bytes, lambda u: storage.download(u, tmp_path / "x")):
        with pytest.raises(StorageError, match=f"cannot read {uri}: it does not exist: check the"):
            attempt(uri)


def test_of_many_exclusive_writers_one_wins(tmp_path: Path) -> None:
    uri, start = str(tmp_path / "record"), threading.Barrier(8)

    def write(number: int) -> str:
        start.wait()
        try:
            storage.write_bytes(uri, str(number).encode() * 100_000, exclusive=True)
        except AlreadyExistsError:
            return ""
        return str(number)

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number]
    assert len(winners) == 1
    assert storage.read_bytes(uri) == winners[0].encode() * 100_000
    assert list(tmp_path.iterdir()) == [tmp_path / "record"]


def test_a_killed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    program = (
        "import sys; from effnet_ray import storage\n"
        f"while True: [storage.write_bytes({uri!r}, c * 2**22) for c in (b'a', b'b')]; print()"
    )
    child = subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert storage.sizes(str(tmp_path)) == {"file": 2**22}
    assert set(storage.read_bytes(uri)) in ({ord("a")}, {ord("b")})


# --- errors of S3


@pytest.mark.parametrize("kind", ["rclone", "moto"], indirect=True)
def test_a_missing_bucket_is_named(kind: str) -> None:
    uri = "s3://no-such-bucket-here/data"
    message = f"{uri}: the bucket 'no-such-bucket-here' does not exist at http://127.0.0.1"
    with pytest.raises(StorageError, match=f"cannot list {message}"):
        storage.sizes(uri)
    with pytest.raises(StorageError, match=f"cannot list {message}"):
        storage.folders(uri)
    with pytest.raises(StorageError, match=f"cannot read {message}"):
        storage.read_bytes(uri)
    with pytest.raises(StorageError, match=f"cannot write {message}"):
        storage.write_bytes(uri, b"")


def test_a_profile_that_assumes_a_role_reads_and_writes_alike(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moto plays STS, too, and denies a request without a signature."""
    keys = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}"
    role = "role_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = base"
    (tmp_path / "credentials").write_text(f"[base]\n{keys}\n")
    (tmp_path / "config").write_text(f"[profile base]\n[profile role]\n{role}\n")
    with s3_environment(moto):
        uri = f"{fresh_bucket()}/file"
    with s3_environment(moto, key=None):
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "role")
        storage.write_bytes(uri, b"0123456789")
        filesystem, path = storage.arrow_filesystem(uri)
        with filesystem.open_input_file(path) as file:
            assert file.read() == b"0123456789"
        credentials = s3._credentials()
        assert credentials is not None and credentials.token


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        ("RequestTimeTooSkewed", 403, "set it by NTP"),
        ("PermanentRedirect", 301, "set AWS_REGION"),
        ("AuthorizationHeaderMalformed", 400, "set AWS_REGION"),
    ],
)
def test_a_wrong_clock_and_a_wrong_region_are_no_matter_of_permissions(
    code: str, status: int, advice: str
) -> None:
    metadata = {"HTTPStatusCode": status}
    response: Any = {"Error": {"Code": code, "Message": "…"}, "ResponseMetadata": metadata}
    cause = ClientError(response, "GetObject")
    raised = s3fs.errors.translate_boto_error(cause)
    raised.__cause__ = cause
    message = str(s3_errors.translate(raised, "s3://bucket/key", "read"))
    assert advice in message and "keys" not in message


def test_missing_credentials_are_said_to_be_missing(rclone: str) -> None:
    with (
        s3_environment(rclone, key=None),
        pytest.raises(StorageError, match=r"no usable S3 credentials .*set AWS_ACCESS_KEY_ID and"),
    ):
        storage.read_bytes("s3://bucket/data")


def test_wrong_credentials_are_said_to_be_denied(rclone: str) -> None:
    with (
        s3_environment(rclone, secret="sk87654321"),
        pytest.raises(StorageError, match=r"access denied .*check the keys"),
    ):
        storage.read_bytes("s3://bucket/data")


def test_a_file_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*/file/below"):
        storage.write_bytes(str(tmp_path / "file/below"), b"")
    with pytest.raises(StorageError, match="cannot read"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.parametrize("special", ["pipe", "device"])
def test_a_pipe_or_a_device_is_no_file(tmp_path: Path, special: str) -> None:
    """Reading it would never begin, or never end."""
    path = tmp_path / "data.png"
    if special == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    readers: list[Callable[[str], object]] = [
        storage.read_bytes, lambda uri: storage.read_range(uri, 0, 10), storage.arrow_filesystem,
        lambda uri: local.swap(uri, b"", ""),
    ]  # fmt: skip
    for reader in readers:
        with pytest.raises(StorageError, match="is a pipe or a device: choose a file"):
            reader(str(path))
    assert storage.entries(str(tmp_path)) == {}
    with pytest.raises(StorageError, match="is a pipe, a socket or a device: delete it"):
        storage.entries(str(tmp_path), follow_links=True)


@pytest.mark.parametrize("uri", ["", " "])
def test_an_empty_path_is_not_the_current_folder(uri: str) -> None:
    with pytest.raises(StorageError, match="a path is empty"):
        storage.absolute(uri)


@pytest.mark.parametrize("uri", ["gs://bucket/data", "https://host/data", "file:///tmp", "://x"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    for attempt in (storage.is_remote, storage.absolute, storage.read_bytes, storage.sizes):
        with pytest.raises(StorageError, match="use s3://bucket/prefix or a path"):
            attempt(uri)


def test_paths_become_absolute_and_lose_their_last_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.absolute("~/data/") == "/home/somebody/data"
    assert storage.absolute("data") == f"{os.getcwd()}/data"
    assert storage.absolute("s3://bucket/data/") == "s3://bucket/data"


def test_the_s3_libraries_are_imported_for_the_first_s3_uri_only() -> None:
    script = (
        "import sys; from effnet_ray import storage; storage.sizes('.');"
        "print({'s3fs', 'botocore', 'fsspec', 'aiohttp', 'pyarrow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_full_disk_is_named_with_what_to_do() -> None:
    with (
        pytest.raises(StorageError, match=r"No space left .*: free some space, or choose another"),
        local.errors("/data/file", "write"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
