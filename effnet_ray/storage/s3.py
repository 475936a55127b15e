"""S3 storage, through s3fs and Arrow; imported when the first `s3://` URI is used.

Settings come from the standard AWS environment alone (`AWS_ENDPOINT_URL`, keys, region, profile,
instance role). An object is written by a single PUT, or in parts that become visible together.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import botocore.session
import fsspec.asyn
import pyarrow.fs as pafs
import s3fs
from botocore.credentials import Credentials

from effnet_ray.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    ConflictError,
    NotFoundError,
    StorageError,
    TooLargeError,
)
from effnet_ray.storage.backend import Entry, Versioned, check_size
from effnet_ray.storage.retry import Attempt, with_retries, with_timeout
from effnet_ray.storage.s3_endpoint import check_environment, endpoint, proxy, region
from effnet_ray.storage.s3_errors import LIBRARY_ERRORS, is_transient, may_be_expired, translate
from effnet_ray.storage.uri import bucket_and_key, join

T = TypeVar("T")

MAX_DELETED_AT_ONCE = 1000
"""S3's limit on the keys of a DeleteObjects request."""


@lru_cache(maxsize=1)
def client() -> s3fs.S3FileSystem:
    """The client of this process."""
    check_environment()
    filesystem = s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,  # a new client reads the credentials again
        client_kwargs={"region_name": region()},
        config_kwargs={
            "retries": {"mode": "standard", "max_attempts": 1},
            "connect_timeout": 5,
            "read_timeout": 10,
            # Servers other than AWS may answer a range with the whole object's checksum
            # (rclone 1.75 does); what must be exact carries its own digest.
            "response_checksum_validation": "when_required",
        },
    )
    filesystem.retries = 1  # `retry` decides; nested retries would multiply
    return filesystem


def arrow_client() -> pafs.S3FileSystem:
    """Arrow's own client, which reads ranges of Parquet files without holding the GIL.

    It gets the keys that botocore finds, since Arrow knows no profile that assumes a role.
    """
    credentials = _credentials()
    keys = credentials.get_frozen_credentials() if credentials else (None, None, None)
    return _arrow_client(*keys[:3])


@lru_cache(maxsize=1)
def _credentials() -> Credentials | None:
    """What botocore finds, as s3fs does, and renews before it expires; None: nothing."""
    session = botocore.session.Session()
    session.set_config_variable("region", region())
    return session.get_credentials()


@lru_cache(maxsize=1)
def _arrow_client(key: str | None, secret: str | None, token: str | None) -> pafs.S3FileSystem:
    settings: dict[str, Any] = {
        "access_key": key,
        "secret_key": secret,
        "session_token": token,
        "region": region(),
        "request_timeout": 10,
        "connect_timeout": 5,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=2),
    }
    url = endpoint()
    if url:
        # As in `client`: the SDK would take such a checksum for damage.
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        settings |= {"endpoint_override": urlparse(url).netloc, "scheme": urlparse(url).scheme}
    if proxy():  # Arrow 26 does not read the environment's
        settings |= {"proxy_options": proxy()}
    return pafs.S3FileSystem(**settings)


def forget_clients() -> None:
    """Let the next request read the environment and the credentials again."""
    for function in (client, _arrow_client, _credentials):
        function.cache_clear()


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Arrow's file system, and the URI's path in it. Raises StorageError."""
    with errors(uri, "read"):
        return arrow_client(), "/".join(bucket_and_key(uri))


# --- calls


@contextmanager
def errors(uri: str, verb: str) -> Iterator[None]:
    """Raise errors of the S3 libraries as StorageError: "cannot VERB URI: …"."""
    try:
        yield
    except FileNotFoundError as error:
        raise _not_found(uri, verb) from error
    except LIBRARY_ERRORS as error:
        raise translate(error, uri, verb) from error


def _not_found(uri: str, verb: str) -> NotFoundError:
    bucket = bucket_and_key(uri)[0]
    if _bucket_exists(uri, bucket):
        return NotFoundError(f"cannot {verb} {uri}: it does not exist: check the key")
    server = endpoint() or "AWS"
    return BucketNotFoundError(
        f"cannot {verb} {uri}: the bucket {bucket!r} does not exist at {server}: create it, or "
        "check its name"
    )


def _bucket_exists(uri: str, bucket: str) -> bool:
    """Whether the bucket exists; True if S3 does not say."""

    async def head(filesystem: s3fs.S3FileSystem) -> bool:
        try:  # s3fs's own `exists` treats every failure as an answer
            await filesystem._call_s3("head_bucket", Bucket=bucket)
        except FileNotFoundError:
            return False
        return True

    try:
        return call(uri, "look up", head)
    except StorageError:
        return True


def call(
    uri: str,
    verb: str,
    operation: Callable[[s3fs.S3FileSystem], Awaitable[T]],
    size: int = 0,
) -> T:
    """The result of a coroutine function of the client, with retries and a time limit.

    `size`: the bytes it transfers. Raises StorageError.
    """

    def attempt(seconds: float) -> T:
        filesystem = client()

        async def run() -> T:
            return await asyncio.wait_for(operation(filesystem), seconds)

        try:
            result: T = fsspec.asyn.sync(filesystem.loop, run)
        except TimeoutError as error:
            raise TimeoutError(f"no complete answer within {seconds:.0f} s") from error
        return result

    with errors(uri, verb):
        return with_retries(_renewing(attempt), is_transient, size)


def _renewing(attempt: Attempt[T]) -> Attempt[T]:
    """The attempt; if it fails because credentials may have expired, the next one reads them."""

    def run(seconds: float) -> T:
        try:
            return attempt(seconds)
        except LIBRARY_ERRORS as error:
            if may_be_expired(error):
                forget_clients()
            raise

    return run


def request(uri: str, verb: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """S3's response to an API operation, such as `list_objects_v2`. Raises StorageError."""
    return call(uri, verb, lambda fs: fs._call_s3(operation, **parameters))


def read_with_retries(uri: str, operation: Callable[[], T], size: int) -> T:
    """The result of a blocking read, with retries and a time limit. Raises StorageError."""
    with errors(uri, "read"):
        return with_retries(_renewing(with_timeout(operation)), is_transient, size)


# --- objects (the functions of `backend.Backend`)


def read(uri: str, size: int | None, max_bytes: int | None) -> bytes:
    """The whole object; a known `size` saves a request for it."""
    if size is None:
        size = int(call(uri, "read", lambda fs: fs._info(uri))["size"])
    check_size(uri, size, max_bytes)
    data: bytes = call(uri, "read", lambda fs: fs._cat_file(uri), size)
    return data


def read_range(uri: str, start: int, size: int) -> bytes:
    """Up to `size` bytes from `start` on."""
    end = start + size
    data: bytes = call(uri, "read", lambda fs: fs._cat_file(uri, start=start, end=end), size)
    return data


def read_versioned(uri: str, max_bytes: int) -> Versioned:
    """The object with its ETag."""
    bucket, key = bucket_and_key(uri)

    async def get(filesystem: s3fs.S3FileSystem) -> Versioned:
        response = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        try:
            check_size(uri, int(response["ContentLength"]), max_bytes)
            return Versioned(await response["Body"].read(), response["ETag"])
        finally:
            response["Body"].close()

    return call(uri, "read", get)


def write(uri: str, data: bytes) -> None:
    """Write the whole object."""
    call(uri, "write", lambda fs: fs._pipe_file(uri, data), len(data))


def create(uri: str, data: bytes) -> None:
    """Write a new object (`If-None-Match: *`); AlreadyExistsError if it exists.

    Servers that ignore the precondition overwrite the object.
    """
    try:
        call(uri, "write", lambda fs: fs._pipe_file(uri, data, mode="create"), len(data))
    except ConflictError as error:
        if not _is_content(uri, data):
            raise AlreadyExistsError(f"{uri} already exists") from error


def swap(uri: str, data: bytes, etag: str) -> None:
    """Replace the object if it still has the ETag (`If-Match`); ConflictError if not.

    Raises UnsupportedError if the server does not know the precondition.
    """
    bucket, key = bucket_and_key(uri)
    parameters = {"Bucket": bucket, "Key": key, "Body": data, "IfMatch": etag}
    try:
        call(uri, "write", lambda fs: fs._call_s3("put_object", **parameters), len(data))
    except (ConflictError, NotFoundError) as error:
        if not _is_content(uri, data):
            raise ConflictError(
                f"{uri} was changed by another writer: run the same command again"
            ) from error


def _is_content(uri: str, data: bytes) -> bool:
    """Whether the object is `data`: an earlier attempt wrote it and only the answer was lost."""
    try:
        return read_versioned(uri, max_bytes=len(data)).data == data
    except (NotFoundError, TooLargeError):
        return False


def upload(path: Path, uri: str) -> None:
    """Copy a local file to the URI."""
    call(uri, "write", lambda fs: fs._put_file(str(path), uri), path.stat().st_size)


def exists(uri: str) -> bool:
    """Whether an object or a folder exists."""
    return bool(call(uri, "look up", lambda fs: fs._exists(uri)))


def entries(uri: str, *, follow_links: bool = False) -> dict[str, Entry]:
    """Every object below the URI by its relative path, hidden ones included.

    One call per page of the listing: a large bucket has thousands, and any of them may fail.
    """
    bucket, prefix = bucket_and_key(uri)
    folder = f"{prefix}/" if prefix else ""
    result: dict[str, Entry] = {}
    parameters = {"Bucket": bucket, "Prefix": folder}
    while True:
        page = request(uri, "list", "list_objects_v2", **parameters)
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                modified = item["LastModified"].timestamp()
                entry = Entry(int(item["Size"]), modified, item.get("ETag", ""))
                result[item["Key"][len(folder) :]] = entry
        if not page.get("IsTruncated"):
            return result
        parameters["ContinuationToken"] = page["NextContinuationToken"]


def folders(uri: str) -> list[str]:
    """Names of the folders directly below the URI. Raises BucketNotFoundError."""
    path = "/".join(bucket_and_key(uri)).rstrip("/")
    try:
        items = call(uri, "list", lambda fs: fs._ls(path, detail=True))
    except BucketNotFoundError:
        raise
    except NotFoundError:
        return []
    return [item["name"].rsplit("/", 1)[-1] for item in items if item["type"] == "directory"]


def delete(uri: str) -> None:
    """Delete an object, or a folder with everything below it, if it exists."""
    delete_files([uri, *(join(uri, path) for path in entries(uri.rstrip("/")))])


def delete_files(uris: Sequence[str]) -> None:
    """Delete files of one folder, a thousand per request, those of them that exist."""
    for first in range(0, len(uris), MAX_DELETED_AT_ONCE):
        batch = uris[first : first + MAX_DELETED_AT_ONCE]
        call(batch[0], "delete", partial(s3fs.S3FileSystem._bulk_delete, pathlist=batch))
