"""At a limit of the machine a writer refuses in a sentence, and leaves nothing half-written."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec.asyn
import pyarrow as pa
import pytest
from support import machines
from support.faults import Faults, Proxy, proxy
from support.jobs import ROOT
from support.laws import RECIPE, STEPS
from support.limits import (
    WRITERS,
    Disk,
    Writer,
    file_size_limit,
    small_disk,
    write_or_refuse,
    writers,
)
from support.machines import WITH_RAY, WITHOUT_RAY, Assets, Machine, run
from support.plain_run import plain_run
from support.servers import fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.errors import OutageError, StorageError, TrainingError
from effnet_ray.release import publish
from effnet_ray.release.model_folder import list_model
from effnet_ray.release.store import ModelStore
from effnet_ray.storage import checksummed_json, parquet, retry, s3
from effnet_ray.storage.temporary import temporary_folder
from effnet_ray.train import checkpoint, run_record

pytestmark = pytest.mark.heavy

SHARES = (0, 0.3, 0.6, 0.9)
"""Shares of the space that a writer needs."""
WHAT_TO_DO = "free some space, or choose another folder"


@pytest.fixture
def writer(request: pytest.FixtureRequest, photographs: Path) -> Writer:
    """The writer that a test is parametrized by."""
    return writers(str(photographs))[request.param]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 200 MB."""
    with small_disk(tmp_path / "disk", "size=200m") as mounted:
        yield mounted


def needed(writer: Writer, folder: Path) -> int:
    """The bytes that a writer writes; three blocks of a disk for one that frees more."""
    folder.mkdir()
    writer.prepare(str(folder))
    before = sum(storage.sizes(str(folder)).values())
    assert write_or_refuse(writer, str(folder)) == ""
    return max(3 * 4096, sum(storage.sizes(str(folder)).values()) - before)


def all_writers(*quick: str) -> pytest.MarkDecorator:
    """Parametrizes by the writers; those that are not quick are long."""
    return pytest.mark.parametrize(
        "writer",
        [pytest.param(w, marks=() if w in quick else pytest.mark.long) for w in WRITERS],
        indirect=True,
    )


@all_writers(*WRITERS)
def test_a_full_disk_is_refused_and_the_writer_goes_on_when_there_is_space(
    writer: Writer, disk: Disk, tmp_path: Path
) -> None:
    size = needed(writer, tmp_path / "whole")
    place = disk.folder / "place"
    for share in SHARES:
        place.mkdir()
        writer.prepare(str(place))
        disk.fill(int(size * share))
        says = write_or_refuse(writer, str(place))
        assert WHAT_TO_DO in says or share, says
        assert not says or WHAT_TO_DO in says, says
        disk.empty()
        assert not says or write_or_refuse(writer, str(place)) == ""
        shutil.rmtree(place)


@all_writers(*WRITERS)
def test_a_disk_without_inodes_is_refused(writer: Writer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=200m,nr_inodes=120") as disk:
        place = disk.folder / "place"
        for leave in range(8):  # also between a temporary file and its name
            place.mkdir()
            writer.prepare(str(place))
            disk.fill_inodes(leave)
            says = write_or_refuse(writer, str(place))
            assert WHAT_TO_DO in says or leave, says
            assert not says or WHAT_TO_DO in says, says
            disk.empty()
            assert not says or write_or_refuse(writer, str(place)) == ""
            shutil.rmtree(place)


@all_writers(*WRITERS)
def test_a_quota_is_refused(writer: Writer, tmp_path: Path) -> None:
    size = needed(writer, tmp_path / "whole")
    place = tmp_path / "place"
    for share in SHARES:
        place.mkdir()
        writer.prepare(str(place))
        with file_size_limit(int(size * share)):
            says = write_or_refuse(writer, str(place))
        assert says or share
        assert not says or "ulimit -f" in says or "set TMPDIR" in says, says
        assert not says or write_or_refuse(writer, str(place)) == ""
        shutil.rmtree(place)


def test_a_run_whose_disk_is_full_fails_at_once_and_goes_on_when_there_is_space(
    digits: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "size=12m") as disk:
        runs = str(disk.folder)
        with pytest.raises(TrainingError, match=WHAT_TO_DO):
            plain_run(RECIPE, digits, runs, "full")
        assert run_record.load_result(f"{runs}/full") is None
        assert checkpoint.newest(f"{runs}/full/{run_record.CHECKPOINTS}") is None
        disk.remount("size=900m")
        assert plain_run(RECIPE, digits, runs, "full").finished.steps == 2 * STEPS


# --- other folders


@all_writers("pack", "checkpoint")
def test_a_read_only_disk_is_refused(writer: Writer, disk: Disk) -> None:
    place = disk.folder / "place"
    place.mkdir()
    writer.prepare(str(place))
    disk.remount("ro")
    assert "choose a folder that can be written" in write_or_refuse(writer, str(place))
    disk.remount("rw")
    assert write_or_refuse(writer, str(place)) == ""


@pytest.mark.parametrize("writer", ["pack", "checkpoint"], indirect=True)
def test_a_full_folder_of_temporary_files_is_refused(
    writer: Writer, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    place = tmp_path / "place"
    place.mkdir()
    for leave in (0, 30_000):
        disk.fill(leave)
        says = write_or_refuse(writer, str(place))
        assert says.startswith("cannot write temporary files (")
        assert says.endswith("set TMPDIR to a folder on another disk")
        disk.empty()
    assert write_or_refuse(writer, str(place)) == ""


def test_a_machine_without_a_folder_for_temporary_files_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(StorageError, match=r"No usable temporary directory.*set TMPDIR"):
        with temporary_folder("x"):
            pass


@pytest.mark.parametrize("path", ["pack", pytest.param("data", marks=pytest.mark.long)])
def test_a_folder_of_another_user_is_refused(packed: Path, photographs: Path, path: str) -> None:
    if not machines.can_change_user():
        pytest.skip("this process cannot run this Python as another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(photographs, folder / "images")
        shutil.copytree(packed, folder / "data")
        job, flags = WITHOUT_RAY[path]
        answer = run(
            Machine({"HOME": "/missing"}, machines.as_user(machines.NOBODY)),
            job,
            flags(Assets(folder), folder),
        )
    machines.assert_for_people(answer)
    assert answer.code == 2 and "access denied" in answer.err, answer


# --- open files


@pytest.mark.parametrize("files", [1024, 64])
def test_few_open_files_are_enough_to_pack(files: int, photographs: Path, tmp_path: Path) -> None:
    limited = Machine(prefix=("prlimit", f"--nofile={files}:{files}"))
    answer = run(limited, "pack", ["--source", str(photographs), "--out", str(tmp_path / "out")])
    machines.assert_for_people(answer)
    assert answer.code == 0, answer


def test_too_few_open_files_are_said() -> None:
    script = (
        "import os\n"
        "from effnet_ray.cli.main import main\n"
        "def job(_):\n"
        "    return {'files': [os.open(os.devnull, os.O_RDONLY) for _ in range(99)]}\n"
        "raise SystemExit(main(job, []))\n"
    )
    done = subprocess.run(
        ["prlimit", "--nofile=64:64", sys.executable, "-c", script],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "Too many open files" in done.stderr and "(ulimit -n 65536)" in done.stderr
    assert "Traceback" not in done.stderr


# --- clocks

DAY = 24 * 3600.0


def shift(folder: Path, seconds: float) -> None:
    """Give every file the time that a clock so far ahead would have given it."""
    for path in folder.rglob("*"):
        times = path.stat()
        os.utime(path, (times.st_atime + seconds, times.st_mtime + seconds))


FILES = {"model.safetensors": b"w" * 100, "config.json": b"{}"}
PROVENANCE = {"run": "r"}


@pytest.mark.parametrize("days", [-2, 2])
def test_no_clock_makes_gc_delete_a_release(tmp_path: Path, days: int) -> None:
    store = ModelStore(str(tmp_path))
    store.publish("birds", FILES, PROVENANCE)
    shift(tmp_path, days * DAY)
    assert store.gc(DAY).removed == []
    assert store.find("birds@v1").version == 1


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("days", [-2, 2])
def test_a_clock_that_jumps_while_a_release_is_published_does_no_harm(
    tmp_path: Path, days: int, claimed: bool
) -> None:
    store = ModelStore(str(tmp_path))
    folder = list_model(store.uri, "birds")
    content = publish.record_content(FILES, PROVENANCE)
    publish.write_files(publish.staging_uri(folder, content), FILES)
    if claimed:
        now = {"name": "birds", "version": 1, "published": publish.now(), **content}
        storage.write_bytes(folder.claim_uri(1), checksummed_json.seal(now))
    shift(tmp_path, days * DAY)
    collected = store.gc(DAY)
    assert collected.finished == (["birds@v1"] if claimed and days < 0 else [])
    assert store.publish("birds", FILES, PROVENANCE).version == 1
    assert store.find("birds@v1").version == 1


def test_leftovers_from_the_future_are_deleted_when_their_day_has_come(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    folder = list_model(store.uri, "birds")
    staged = publish.staging_uri(folder, publish.record_content(FILES, PROVENANCE))
    publish.write_files(staged, FILES)
    shift(tmp_path, 2 * DAY)
    assert store.gc(DAY).removed == []
    shift(tmp_path, -4 * DAY)
    assert store.gc(DAY).removed == [staged]


# --- S3

NAMELESS = "storage.invalid"
"""A host name that no name server knows (RFC 2606)."""

RESOLVES_LATER = """
import socket, sys, time
from effnet_ray import storage
from effnet_ray.errors import StorageError
from effnet_ray.storage import retry
retry.GIVE_UP_S = 20.0 if float(sys.argv[2]) < 10 else 2.0
real, begin = socket.getaddrinfo, time.monotonic()
def resolve(host, *rest, **named):
    if host == "storage.invalid":
        if time.monotonic() - begin < float(sys.argv[2]):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return real(host, *rest, **named)
socket.getaddrinfo = resolve
try:
    print(storage.read_bytes(sys.argv[1]).decode())
except StorageError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("seconds", [3, 1000])
def test_names_that_do_not_resolve_for_a_while_are_asked_again(rclone: str, seconds: int) -> None:
    with s3_environment(rclone):
        uri = f"{fresh_bucket()}/key"
        storage.write_bytes(uri, b"there")
        endpoint = rclone.replace("127.0.0.1", NAMELESS)
        done = subprocess.run(
            [sys.executable, "-c", RESOLVES_LATER, uri, str(seconds)],
            env={**os.environ, "AWS_ENDPOINT_URL": endpoint}, cwd=ROOT,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    if seconds < 10:
        assert done.stdout == "there\n", done
    else:
        says = f"OutageError cannot read {uri}: no answer from {endpoint}"
        assert done.stdout.startswith(says), done
        assert "check AWS_ENDPOINT_URL and the network" in done.stdout


READS = {
    "bytes": lambda uri: storage.read_bytes(uri),
    "range": lambda uri: storage.read_range(uri, 0, 4),
    "footer": lambda uri: parquet.read_footer(uri),
    "list": lambda uri: storage.sizes(uri.rpartition("/")[0]),
    "write": lambda uri: storage.write_bytes(f"{uri}.copy", b"x"),
}


@pytest.fixture
def expiring(moto: str, tmp_path: Path) -> Iterator[tuple[Proxy, str, Path]]:
    """A server that knows no keys but those of a file's profile; a Parquet file; the file."""
    with proxy(moto) as server, s3_environment(server.endpoint, key=None):
        keys = tmp_path / "credentials"
        write_keys(keys, "OLD")
        os.environ |= {"AWS_SHARED_CREDENTIALS_FILE": str(keys), "AWS_PROFILE": "default"}
        uri = f"{fresh_bucket()}/table.parquet"
        parquet.write_table(uri, pa.table({"a": [1]}))
        READS["footer"](uri)  # both clients have their keys
        yield server, uri, keys


def write_keys(path: Path, key: str) -> None:
    path.write_text(
        f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n"
    )


@pytest.mark.parametrize("read", READS)
def test_credentials_that_expire_are_read_again(
    expiring: tuple[Proxy, str, Path], read: str
) -> None:
    server, uri, keys = expiring
    server.faults = Faults(("ExpiredToken",), share=1, signed_by="OLD/")
    write_keys(keys, "NEW")
    assert READS[read](uri) or read == "write"
    assert server.faults.made >= 1


@pytest.mark.parametrize("read", READS)
def test_a_role_that_expires_is_assumed_again(moto: str, tmp_path: Path, read: str) -> None:
    """Moto plays STS, and gives other keys each time."""
    keys = "aws_access_key_id = BASE\naws_secret_access_key = s"
    role = "role_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = base"
    config = tmp_path / "config"
    config.write_text(f"[profile base]\n{keys}\n[profile role]\n{role}\n")
    with proxy(moto) as server, s3_environment(server.endpoint, key=None):
        os.environ |= {"AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "role"}
        uri = f"{fresh_bucket()}/table.parquet"
        parquet.write_table(uri, pa.table({"a": [1]}))
        READS["footer"](uri)
        refused = 0
        for old in assumed_keys():
            server.faults = Faults(("ExpiredToken",), share=1, signed_by=f"{old}/")
            assert READS[read](uri) or read == "write"
            refused += server.faults.made
        assert refused


def assumed_keys() -> set[str]:
    """The ids of the keys that s3fs and Arrow use now."""
    filesystem, for_arrow = s3.client(), s3._credentials()

    async def for_s3fs() -> str:
        found = await filesystem.session.get_credentials()
        return str((await found.get_frozen_credentials()).access_key)

    assert for_arrow
    return {
        for_arrow.get_frozen_credentials().access_key,
        fsspec.asyn.sync(filesystem.loop, for_s3fs),
    }


@pytest.mark.parametrize("read", READS)
def test_credentials_that_have_expired_are_said(
    expiring: tuple[Proxy, str, Path], read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "GIVE_UP_S", 1.0)
    server, uri, _ = expiring
    server.faults = Faults(("ExpiredToken",), share=1)
    with pytest.raises(OutageError, match=r"credentials have expired.*renew them") as output:
        READS[read](uri)
    assert uri.rpartition("/")[0] in str(output.value)


def test_a_bucket_with_object_lock_holds_a_store(moto: str) -> None:
    with s3_environment(moto):
        name = f"locked-{uuid.uuid4().hex[:12]}"
        call = s3.client().call_s3
        call("create_bucket", Bucket=name, ObjectLockEnabledForBucket=True)
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}
        lock = {"ObjectLockEnabled": "Enabled", "Rule": rule}
        call("put_object_lock_configuration", Bucket=name, ObjectLockConfiguration=lock)
        store = ModelStore(f"s3://{name}/store")
        for number in range(2):
            store.publish("birds", {**FILES, "config.json": b"{}" + b" " * number},
                          {"run": str(number)})  # fmt: skip
        store.promote("birds@v2", "prod")
        store.promote("birds@v1", "prod", force=True)
        store.delete("birds@v2", force=True)
        store.gc(0)
        assert store.versions("birds") == [1]
        assert store.find("birds@prod").version == 1


# --- Ray's limits

SMALL_STORE = """
import sys
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import main
from effnet_ray.runtime import session
session.start_local(2, object_store_memory=80 * 1024**2, log_to_driver=False,
                    logging_level="ERROR")
raise SystemExit(main(finetune_job, sys.argv[1:]))
"""


@pytest.mark.ray
@pytest.mark.long
def test_an_object_store_of_80_mb_is_enough(packed: Path, tmp_path: Path) -> None:
    flags = WITH_RAY["finetune"][1](Assets(tmp_path), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STORE, *flags, "--data", str(packed)],
        cwd=ROOT, capture_output=True, text=True, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.long
def test_workers_that_are_killed_for_memory_end_the_run_in_a_sentence(
    packed: Path, tmp_path: Path
) -> None:
    full = Machine({"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250"})
    job, flags = WITH_RAY["finetune"]
    answer = run(full, job, [*flags(Assets(tmp_path), tmp_path), "--data", str(packed)])
    machines.assert_for_people(answer)
    assert answer.code == 1 and "with fewer --workers if memory ran out" in answer.err, answer


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EROFS, errno.ENOMEM])
def test_another_limit_within_a_temporary_folder_keeps_its_own_advice(number: int) -> None:
    with pytest.raises(OSError) as error, temporary_folder("x"):
        raise OSError(number, "of the work")
    assert error.value.errno == number
