"""The only door to s3:// and local paths: read, write, list, delete, and files for Parquet.

A URI is `s3://bucket/prefix` or a local path. S3 settings come from the standard AWS environment
(`AWS_ENDPOINT_URL`, keys, region, profile, instance role) and from nowhere else. Every write is
whole or absent: a temporary file and a rename on a disk, a single PUT on S3. Errors of the
libraries below are translated here, once.
"""

import asyncio
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import fsspec.asyn
import pyarrow.fs as pafs
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from effnet_ray.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    ConflictError,
    NotFoundError,
    OutageError,
    StorageError,
    TooLargeError,
    UnsupportedError,
)
from effnet_ray.storage import local as disk
from effnet_ray.storage.retry import is_transient, with_retries, with_timeout

T = TypeVar("T")

DEFAULT_REGION = "us-east-1"
"""What S3 servers that have no regions accept."""

DELETED_AT_ONCE = 1000
"""S3's own bound."""

RECORD_BYTES = 16_000_000
"""More than any record has; what is larger is no record, and not read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a listing."""

    size: int
    """Bytes."""
    modified: float
    """When it was written, seconds since 1970, by the storage's clock."""


def is_remote(uri: str) -> bool:
    """Whether the URI is in object storage.

    Raises StorageError for an unknown scheme, and where no bucket is named.
    """
    scheme, mark, rest = uri.partition("://")
    if mark and scheme != "s3":
        raise StorageError(f"{uri} has the scheme {scheme}://: use s3://bucket/prefix or a path")
    if mark and not rest.split("/")[0]:
        raise StorageError(f"{uri} names no bucket: use s3://bucket/prefix")
    return bool(mark)


def absolute(uri: str) -> str:
    """The URI, a local path made absolute and `~` expanded, no slash at the end."""
    return uri.rstrip("/") if is_remote(uri) else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    """`uri/part/…`."""
    return "/".join([uri.rstrip("/"), *parts])


@lru_cache(maxsize=1)
def _s3() -> s3fs.S3FileSystem:
    _endpoint()
    retries = {"mode": "standard", "max_attempts": 1}
    client = s3fs.S3FileSystem(
        use_listings_cache=False,
        client_kwargs={"region_name": _region()},
        config_kwargs={
            "retries": retries,
            "connect_timeout": 5,
            "read_timeout": 10,
            # Servers that are not AWS's may answer a range with the whole object's checksum
            # (rclone 1.75 does); what must be exact carries its own digest.
            "response_checksum_validation": "when_required",
        },
    )
    client.retries = 1  # `retry` decides; layers would multiply
    return client


def _endpoint() -> str:
    """Of a server that is not AWS's; empty for AWS. Raises StorageError where it is no URL."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        endpoint = os.environ.get(name, "")
        if endpoint:
            url = urlparse(endpoint)
            if url.scheme not in ("http", "https") or not url.netloc:
                raise StorageError(f"{name} is {endpoint!r}: expected http(s)://HOST:PORT")
            return endpoint
    return ""


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


@lru_cache(maxsize=1)
def _arrow_s3() -> pafs.S3FileSystem:
    """Arrow's own client, for range reads of Parquet without the interpreter in between."""
    settings: dict[str, Any] = {
        "region": _region(),
        "request_timeout": 10,
        "connect_timeout": 5,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=2),
    }
    endpoint = _endpoint()
    if endpoint:
        # Servers that are not AWS's may answer a range with the whole object's checksum
        # (rclone 1.75 does), which the SDK would take for damage; images carry their own digest.
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        settings |= {
            "endpoint_override": urlparse(endpoint).netloc,
            "scheme": urlparse(endpoint).scheme,
        }
    return pafs.S3FileSystem(**settings)


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Arrow's file system for the URI, and the URI's path in it."""
    if is_remote(uri):
        return _arrow_s3(), uri.removeprefix("s3://")
    return pafs.LocalFileSystem(), uri


@contextmanager
def storage_errors(uri: str, verb: str) -> Iterator[None]:
    """Turn whatever a storage client raises into one sentence about the URI."""
    try:
        yield
    except FileNotFoundError as error:
        raise _not_found(uri, verb) from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise StorageError(
            f"cannot {verb} {uri}: no usable S3 credentials ({error}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an instance role"
        ) from error
    except PermissionError as error:
        raise StorageError(
            f"cannot {verb} {uri}: access denied ({error}): check the keys and their rights"
        ) from error
    except EndpointConnectionError as error:
        raise OutageError(
            f"cannot {verb} {uri}: no answer from "
            f"{error.kwargs.get('endpoint_url', 'S3')}: check AWS_ENDPOINT_URL and the network"
        ) from error
    except (OSError, ClientError, BotoCoreError) as error:
        raise _translated(error, uri, verb) from error


def _translated(error: Exception, uri: str, verb: str) -> StorageError:
    """The StorageError of this package for an error of a storage client."""
    message = f"cannot {verb} {uri}: {_one_line(error)}"
    code = _s3_code(error)
    if is_transient(error):
        advice = (
            ": object storage kept failing: check its load and the network, then run the same "
            "command again"
        )
        return OutageError(message + advice if is_remote(uri) else message)
    if code in ("PreconditionFailed", "412"):
        return ConflictError(f"{uri} was changed by another writer: run the same command again")
    if code in ("NotImplemented", "501"):
        return UnsupportedError(message)
    return StorageError(message)


def _s3_code(error: BaseException) -> str:
    """The error code in S3's response; empty where there is none."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return str(getattr(cause, "response", {}).get("Error", {}).get("Code", ""))


def read_with_retries(uri: str, operation: Callable[[], T], size: int = 0) -> T:
    """What reading the URI by `operation` returns, tried again where it is remote.

    For libraries that read by themselves through `arrow_filesystem`; `size` is in bytes. Raises
    StorageError.
    """
    with storage_errors(uri, "read"):
        return with_retries(with_timeout(operation), size) if is_remote(uri) else operation()


Call = Callable[[s3fs.S3FileSystem], Awaitable[Any]]


def call_s3(
    uri: str, verb: str, method: str | Call, *args: Any, size: int = 0, **more: Any
) -> Any:
    """What s3fs's coroutine `method` returns, tried again; a try that takes long is cancelled.

    `method` may also be a coroutine function of the client. Raises StorageError.
    """

    def within(seconds: float) -> Any:
        client = _s3()

        async def call() -> Any:
            asked = getattr(client, method)(*args, **more) if isinstance(method, str) \
                else method(client)  # fmt: skip
            return await asyncio.wait_for(asked, seconds)

        try:
            return fsspec.asyn.sync(client.loop, call)
        except TimeoutError as error:
            raise TimeoutError(f"no complete answer within {seconds:.0f} s") from error

    with storage_errors(uri, verb):
        return with_retries(within, size)


def _not_found(uri: str, verb: str) -> NotFoundError:
    if not is_remote(uri):
        return NotFoundError(f"cannot {verb} {uri}: it does not exist: check the path")
    bucket = uri.removeprefix("s3://").split("/")[0]

    async def there(client: Any) -> bool:
        try:  # s3fs's own `exists` takes every failure for an answer
            await client._call_s3("head_bucket", Bucket=bucket)
        except FileNotFoundError:
            return False
        return True

    try:
        found = call_s3(uri, "look for", there)
    except StorageError:
        found = True
    if found:
        return NotFoundError(f"cannot {verb} {uri}: it does not exist: check the key")
    where = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    return BucketNotFoundError(
        f"cannot {verb} {uri}: the bucket {bucket!r} does not exist at {where}: create it, or "
        "check its name"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_bytes(uri: str, size: int | None = None, *, most: int | None = None) -> bytes:
    """The whole object; `size`, if known, saves asking for it.

    Raises StorageError, also where it has more than `most` bytes: it is not read then.
    """

    def local() -> bytes:
        with open(uri, "rb") as file:  # which others may delete meanwhile
            check_size(uri, os.fstat(file.fileno()).st_size, most)
            return file.read()

    if not is_remote(uri):
        return read_with_retries(uri, local)
    if size is None:
        size = int(call_s3(uri, "read", "_info", uri)["size"])
    check_size(uri, size, most)
    data: bytes = call_s3(uri, "read", "_cat_file", uri, size=size)
    return data


def check_size(uri: str, size: int, most: int | None) -> None:
    """Raises StorageError where an object has more bytes than it may."""
    if most is not None and size > most:
        raise TooLargeError(
            f"{uri} has {size:,} bytes, at most {most:,} were expected: restore it"
        )


def read_range(uri: str, start: int, size: int) -> bytes:
    """`size` bytes of the object from `start` on. Raises StorageError."""

    def local() -> bytes:
        with open(uri, "rb") as file:
            file.seek(start)
            return file.read(size)

    if is_remote(uri):
        end = start + size
        found: bytes = call_s3(uri, "read", "_cat_file", uri, start=start, end=end, size=size)
    else:
        found = read_with_retries(uri, local)
    if len(found) != size:
        raise StorageError(f"cannot read {uri}: it ends before byte {start + size:,}")
    return found


def write_bytes(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write the whole object or nothing.

    With `exclusive`, raises AlreadyExistsError where the object exists. S3 servers that ignore
    preconditions cannot promise that against a second writer; one writer is safe everywhere.
    """
    if exclusive and exists(uri):
        raise AlreadyExistsError(f"{uri} exists already")
    if not is_remote(uri):
        with storage_errors(uri, "write"):
            return disk.write(Path(uri), data, exclusive=exclusive)
    mode = "create" if exclusive else "overwrite"
    try:
        call_s3(uri, "write", "_pipe_file", uri, data, mode=mode, size=len(data))
    except ConflictError as error:
        # If an earlier try wrote the object and only its answer was lost, all is well.
        if read_bytes(uri) != data:
            raise AlreadyExistsError(f"{uri} exists already") from error


def upload(local: Path, uri: str) -> None:
    """Copy a local file to the URI, whole or absent."""
    if is_remote(uri):
        call_s3(uri, "write", "_put_file", str(local), uri, size=local.stat().st_size)
    else:
        with storage_errors(uri, "write"):
            disk.copy(local, Path(uri))


def download(uri: str, local: Path) -> None:
    """Copy the object to a local file."""
    local.write_bytes(read_bytes(uri))


def exists(uri: str) -> bool:
    """Whether an object or a folder is there."""
    if is_remote(uri):
        return bool(call_s3(uri, "look for", "_exists", uri))
    with storage_errors(uri, "look for"):
        return Path(uri).exists()


def sizes(uri: str) -> dict[str, int]:
    """Every file below the URI: path relative to it → bytes, sorted; empty where nothing is.

    Raises StorageError where the bucket is missing or cannot be listed.
    """
    return {path: entry.size for path, entry in entries(uri).items()}


def entries(uri: str, *, hidden: bool = False) -> dict[str, Entry]:
    """`sizes`, with times; also of hidden files if told."""
    uri = uri.rstrip("/")
    with storage_errors(uri, "list"):
        found = _objects(uri) if is_remote(uri) else _files(Path(uri))
    return {
        path: entry
        for path, entry in sorted(found.items())
        if hidden or not any(part.startswith(".") for part in path.split("/"))
    }


def _files(root: Path) -> dict[str, Entry]:
    """Those that somebody deletes in the meantime are left out."""
    found = {}

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(root, onerror=failed):
        for path in (Path(folder, name) for name in names):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(about.st_mode):
                continue  # reading a pipe or a device may never end
            found[path.relative_to(root).as_posix()] = Entry(about.st_size, about.st_mtime)
    return found


def _objects(uri: str) -> dict[str, Entry]:
    """Page by page, since a large bucket has thousands and any of them may fail."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    folder = f"{prefix}/" if prefix else ""
    found: dict[str, Entry] = {}
    more: dict[str, Any] = {}
    while True:
        page = call_s3(
            uri, "list", "_call_s3", "list_objects_v2", Bucket=bucket, Prefix=folder, **more
        )
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                written = item["LastModified"].timestamp()
                found[item["Key"][len(folder) :]] = Entry(int(item["Size"]), written)
        if not page.get("IsTruncated"):
            return found
        more = {"ContinuationToken": page["NextContinuationToken"]}


def folders(uri: str) -> list[str]:
    """Names of the folders directly below the URI, sorted; empty where nothing is."""
    if not is_remote(uri):
        with storage_errors(uri, "list"):
            root = Path(uri)
            return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    try:
        found = call_s3(uri, "list", "_ls", uri.removeprefix("s3://"), detail=True)
    except NotFoundError:
        return []
    return sorted(i["name"].rsplit("/", 1)[-1] for i in found if i["type"] == "directory")


def delete(uri: str) -> None:
    """Delete an object, or a folder with all below it; nothing where nothing is."""
    if is_remote(uri):
        every = [uri, *(join(uri, name) for name in _objects(uri.rstrip("/")))]
        for first in range(0, len(every), DELETED_AT_ONCE):
            part = every[first : first + DELETED_AT_ONCE]
            call_s3(uri, "delete", "_bulk_delete", part)
        return
    with storage_errors(uri, "delete"):
        path = Path(uri)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
