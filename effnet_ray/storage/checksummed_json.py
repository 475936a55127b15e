"""JSON that carries its own SHA-256, and the folders that it vouches for.

A sealed record is written in one way only: what is not, byte for byte, was altered. release.json
is one, with the digest of every file beside it. Nothing but JSON is parsed here.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import NotFoundError, ReleaseError, StorageError, TooLargeError

RECORD = "release.json"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def seal(content: Mapping[str, Any]) -> bytes:
    """The record as it is written: JSON, the digest of the rest last."""
    digest = hashlib.sha256(_json(content)).hexdigest()
    return _json({**content, "sha256": digest})


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def unseal(data: bytes, uri: str) -> dict[str, Any]:
    """The record's content, `sha256` too. Raises ReleaseError where it is not as it was sealed."""
    content = parse(data, uri)
    if "sha256" not in content and "files" in content:
        raise ReleaseError(
            f"{uri} has no seal: it was altered, or published by an older version of this "
            "package: restore it, or publish it again"
        )
    bare = {key: value for key, value in content.items() if key != "sha256"}
    try:
        whole = seal(bare) == data
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise ReleaseError(
            f"{uri} was altered: its content is not what its own SHA-256 vouches for: restore it, "
            "or use another version"
        )
    return content


def parse(data: bytes, uri: str) -> dict[str, Any]:
    """A JSON object. Raises ReleaseError where it is none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise ReleaseError(f"{uri} is no JSON ({why}): restore it") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{uri} holds no JSON object: restore it")
    return content


def is_release(uri: str) -> bool:
    """Whether the folder has a release.json."""
    return storage.exists(storage.join(uri, RECORD))


def read(uri: str) -> dict[str, Any]:
    """The release.json of a folder.

    Raises ReleaseError where it is missing, altered, or names what is no file of the folder.
    """
    return check(read_record(storage.join(uri, RECORD)), uri)


def read_record(uri: str) -> dict[str, Any]:
    """A sealed record. Raises ReleaseError where it is missing or altered."""
    return unseal(read_raw(uri), uri)


def read_raw(uri: str) -> bytes:
    """What `unseal` takes. Raises ReleaseError where it is missing, or larger than any record."""
    try:
        return storage.read_bytes(uri, max_bytes=storage.RECORD_BYTES)
    except StorageError as error:
        raise _unreadable(uri, error) from error


def check(record: dict[str, Any], uri: str) -> dict[str, Any]:
    """The record, if all that it names are files beside it. Raises ReleaseError."""
    files, sizes = record.get("files"), record.get("sizes")
    if not (isinstance(files, dict) and isinstance(sizes, dict) and files.keys() == sizes.keys()):
        raise ReleaseError(f"the {RECORD} of {uri} names no files with digests and sizes")
    for name, digest in files.items():
        if not FILE_NAME.fullmatch(name) or name == RECORD:
            raise ReleaseError(
                f"the {RECORD} of {uri} names {name!r}, which is no file of its folder: do not "
                "use this release"
            )
        size = sizes[name]
        proper = isinstance(digest, str) and DIGEST.fullmatch(digest)
        if not proper or type(size) is not int or size < 0:
            raise ReleaseError(f"the {RECORD} of {uri} has no digest and size of {name}")
    return record


def read_file(uri: str, name: str, record: Mapping[str, Any]) -> bytes:
    """A file of the folder, as its record vouches for it. Raises ReleaseError where it is not."""
    if name not in record["files"]:
        raise ReleaseError(f"the {RECORD} of {uri} vouches for no {name}: use another version")
    place, size = storage.join(uri, name), record["sizes"][name]
    try:
        data = storage.read_bytes(place, max_bytes=size)
    except TooLargeError:
        data = b""  # altered, so not even read
    except StorageError as error:
        raise _unreadable(place, error) from error
    if len(data) != size or hashlib.sha256(data).hexdigest() != record["files"][name]:
        raise ReleaseError(
            f"{name} of {uri} was altered: its SHA-256 is not the one in {RECORD}: restore "
            "it, or use another version"
        )
    return data


def verify(uri: str) -> dict[str, Any]:
    """The release.json of a folder, every file held against it.

    Raises ReleaseError naming the first file that is missing or altered.
    """
    record = read(uri)
    for name in record["files"]:
        read_file(uri, name, record)
    return record


def _unreadable(uri: str, error: StorageError) -> Exception:
    """That it is not as it was released; the error itself where storage did not answer."""
    if isinstance(error, NotFoundError):
        return ReleaseError(f"{uri} is missing, so this is no whole release: restore it")
    if isinstance(error, TooLargeError):
        return ReleaseError(f"{error}, or use another version")
    return error
