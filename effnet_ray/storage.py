"""The only door to s3:// and local paths: read, write, list, delete, and files for Parquet.

A URI is `s3://bucket/prefix` or a local path. S3 settings come from the standard AWS environment
(`AWS_ENDPOINT_URL`, keys, region, profile, instance role) and from nowhere else. Every write is
whole or absent: a temporary file and a rename on a disk, a single PUT on S3. Errors of the
libraries below are translated here, once.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

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

from effnet_ray.errors import StorageError

DEFAULT_REGION = "us-east-1"
"""What S3 servers that have no regions accept."""

ATTEMPTS = 7
"""Tries per request; the SDKs' own exponential back-off makes them half a minute in all."""


def is_remote(uri: str) -> bool:
    """Whether the URI is in object storage. Raises StorageError for an unknown scheme."""
    scheme, mark, _ = uri.partition("://")
    if mark and scheme != "s3":
        raise StorageError(f"{uri} has the scheme {scheme}://: use s3://bucket/prefix or a path")
    return bool(mark)


def absolute(uri: str) -> str:
    """The URI, a local path made absolute and `~` expanded, no slash at the end."""
    return uri.rstrip("/") if is_remote(uri) else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    """`uri/part/…`."""
    return "/".join([uri.rstrip("/"), *parts])


@lru_cache(maxsize=1)
def _s3() -> s3fs.S3FileSystem:
    retries = {"mode": "standard", "max_attempts": ATTEMPTS}
    return s3fs.S3FileSystem(
        use_listings_cache=False,
        client_kwargs={"region_name": _region()},
        config_kwargs={"retries": retries, "connect_timeout": 10, "read_timeout": 30},
    )


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


@lru_cache(maxsize=1)
def _arrow_s3() -> pafs.S3FileSystem:
    """Arrow's own client, for range reads of Parquet without the interpreter in between."""
    settings: dict[str, Any] = {
        "region": _region(),
        "request_timeout": 30,
        "connect_timeout": 10,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
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
def _translated(uri: str, verb: str) -> Iterator[None]:
    """Turn whatever a storage client raises into one sentence about the URI."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"cannot {verb} {uri}: {_missing(uri)}") from error
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
        raise StorageError(
            f"cannot {verb} {uri}: no answer from "
            f"{error.kwargs.get('endpoint_url', 'S3')}: check AWS_ENDPOINT_URL and the network"
        ) from error
    except (OSError, ClientError, BotoCoreError) as error:
        raise StorageError(f"cannot {verb} {uri}: {_one_line(error)}") from error


translated = _translated
"""For the libraries that read a URI by themselves, through `arrow_filesystem`."""


def _missing(uri: str) -> str:
    if not is_remote(uri):
        return "it does not exist: check the path"
    bucket = uri.removeprefix("s3://").split("/")[0]
    try:
        found = _s3().exists(bucket)
    except (OSError, ClientError, BotoCoreError):
        found = True
    if found:
        return "it does not exist: check the key"
    where = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    return f"the bucket {bucket!r} does not exist at {where}: create it, or check its name"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises StorageError."""
    with _translated(uri, "read"):
        if is_remote(uri):
            data: bytes = _s3().cat_file(uri)
            return data
        return Path(uri).read_bytes()


def read_range(uri: str, start: int, size: int) -> bytes:
    """`size` bytes of the object from `start` on. Raises StorageError."""
    with _translated(uri, "read"):
        if is_remote(uri):
            data: bytes = _s3().cat_file(uri, start=start, end=start + size)
        else:
            with open(uri, "rb") as file:
                file.seek(start)
                data = file.read(size)
    if len(data) != size:
        raise StorageError(f"cannot read {uri}: it ends before byte {start + size:,}")
    return data


def write_bytes(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write the whole object or nothing.

    With `exclusive`, raises FileExistsError where the object exists. S3 servers that ignore
    preconditions cannot promise that against a second writer; one writer is safe everywhere.
    """
    if exclusive and exists(uri):
        raise FileExistsError(uri)
    try:
        with _translated(uri, "write"):
            if is_remote(uri):
                _s3().pipe_file(uri, data, mode="create" if exclusive else "overwrite")
            else:
                _write_local(Path(uri), data, exclusive)
    except StorageError as error:
        if exclusive and isinstance(error.__cause__, FileExistsError) and exists(uri):
            raise FileExistsError(uri) from error  # somebody wrote it since the look above
        raise


def _write_local(path: Path, data: bytes, exclusive: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if exclusive:
            os.link(name, path)  # fails where the name exists; os.replace would not
            os.unlink(name)
        else:
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def upload(local: Path, uri: str) -> None:
    """Copy a local file to the URI, whole or absent."""
    with _translated(uri, "write"):
        if is_remote(uri):
            _s3().put_file(str(local), uri)
        else:
            target = Path(uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(local, partial)
            os.replace(partial, target)


def download(uri: str, local: Path) -> None:
    """Copy the object to a local file."""
    with _translated(uri, "read"):
        if is_remote(uri):
            _s3().get_file(uri, str(local))
        else:
            shutil.copyfile(uri, local)


def exists(uri: str) -> bool:
    """Whether an object or a folder is there."""
    with _translated(uri, "look for"):
        return bool(_s3().exists(uri)) if is_remote(uri) else Path(uri).exists()


def sizes(uri: str) -> dict[str, int]:
    """Every file below the URI: path relative to it → bytes, sorted; empty where nothing is.

    Raises StorageError where the bucket is missing or cannot be listed.
    """
    with _translated(uri, "list"):
        if is_remote(uri):
            return _remote_sizes(uri.rstrip("/"))
        root = Path(uri)
        found = {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in root.rglob("*")
            if path.is_file()
        }
        return _visible(found)


def _remote_sizes(uri: str) -> dict[str, int]:
    prefix = uri.removeprefix("s3://")
    bucket = prefix.split("/")[0]
    found = _s3().find(prefix, detail=True)
    if not found and not _s3().exists(bucket):
        raise FileNotFoundError(uri)
    return _visible(
        {
            name[len(prefix) :].lstrip("/"): int(info["size"] or 0)
            for name, info in found.items()
            if info["type"] == "file" and name != prefix
        }
    )


def _visible(sizes: dict[str, int]) -> dict[str, int]:
    """Sorted by name, without hidden files: the same on a disk and in a bucket."""
    return {
        path: size
        for path, size in sorted(sizes.items())
        if not any(part.startswith(".") for part in path.split("/"))
    }


def folders(uri: str) -> list[str]:
    """Names of the folders directly below the URI, sorted; empty where nothing is."""
    with _translated(uri, "list"):
        if is_remote(uri):
            try:
                found = _s3().ls(uri.removeprefix("s3://"), detail=True)
            except FileNotFoundError:
                return []
            return sorted(i["name"].rsplit("/", 1)[-1] for i in found if i["type"] == "directory")
        root = Path(uri)
        return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def delete(uri: str) -> None:
    """Delete an object, or a folder with all below it; nothing where nothing is."""
    with _translated(uri, "delete"):
        if not is_remote(uri):
            path = Path(uri)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif _s3().exists(uri):
            _s3().rm(uri, recursive=True)
