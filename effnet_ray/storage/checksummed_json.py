"""JSON records that carry their own SHA-256, and folders whose files such a record lists.

A record is serialized in exactly one way, so any changed byte is detected. A record may list the
files beside it: `files` maps each name to its SHA-256, `sizes` to its number of bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from effnet_ray import safe_json, storage
from effnet_ray.errors import (
    IncompleteReleaseError,
    NotFoundError,
    ReleaseError,
    StorageError,
    TooLargeError,
)
from effnet_ray.storage.names import NAME

CHECKSUM = "sha256"
"""The last key of a record: SHA-256 of the record without it."""
DIGEST = re.compile(r"[0-9a-f]{64}")
RESTORE = "restore it from a backup, or use another version"


def to_json(content: Mapping[str, Any]) -> bytes:
    """The content as JSON, in the one way in which records are serialized."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def seal(content: Mapping[str, Any]) -> bytes:
    """The record as JSON, with its checksum added as the last key."""
    checksum = hashlib.sha256(to_json(content)).hexdigest()
    return to_json({**content, CHECKSUM: checksum})


def unseal(data: bytes, uri: str) -> dict[str, Any]:
    """Parse a record, checksum included. Raises ReleaseError if it was altered."""
    record = parse(data, uri)
    if CHECKSUM not in record:
        raise ReleaseError(
            f"{uri} has no checksum: it was altered, or effnet_ray did not write it: {RESTORE}"
        )
    content = {key: value for key, value in record.items() if key != CHECKSUM}
    try:
        intact = seal(content) == data
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise ReleaseError(
            f"{uri} was altered: its content does not match its own SHA-256: {RESTORE}"
        )
    return record


def parse(data: bytes, uri: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ReleaseError if the data is anything else."""
    try:
        content = safe_json.parse(data)
    except ValueError as error:
        raise ReleaseError(f"{uri} is not valid JSON ({error}): {RESTORE}") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{uri} is not a JSON object: {RESTORE}")
    return content


def read(uri: str) -> dict[str, Any]:
    """Read a record. Raises ReleaseError if it is missing or was altered."""
    return unseal(read_sealed(uri), uri)


def read_sealed(uri: str) -> bytes:
    """Read a record's bytes. Raises ReleaseError if it is missing, or too large for a record."""
    try:
        return storage.read_bytes(uri, max_bytes=storage.RECORD_BYTES)
    except (NotFoundError, TooLargeError) as error:
        raise _incomplete(uri, error) from error


def check_files(record: dict[str, Any], uri: str, reserved: str) -> dict[str, Any]:
    """Return the record if its list of files is well formed. Raises ReleaseError if it is not.

    Every listed file must lie directly in the record's folder; `reserved` is the record's own
    file name there. `uri` names the record in messages.
    """
    files, sizes = record.get("files"), record.get("sizes")
    if not (isinstance(files, dict) and isinstance(sizes, dict) and files.keys() == sizes.keys()):
        raise ReleaseError(f"{uri} does not list files with their digests and sizes: {RESTORE}")
    for name, digest in files.items():
        if not NAME.fullmatch(name) or name == reserved:
            raise ReleaseError(
                f"{uri} lists {name!r}, which is not a file in its folder: do not use it"
            )
        valid_digest = isinstance(digest, str) and DIGEST.fullmatch(digest)
        if not valid_digest or type(sizes[name]) is not int or sizes[name] < 0:
            raise ReleaseError(f"{uri} has no valid digest and size for {name}: {RESTORE}")
    return record


def read_file(folder: str, name: str, record: Mapping[str, Any]) -> bytes:
    """Read a listed file of the folder. Raises ReleaseError if it does not match its record."""
    if name not in record["files"]:
        raise ReleaseError(f"the record of {folder} does not list {name}: use another version")
    uri, size = storage.join(folder, name), record["sizes"][name]
    try:
        data = storage.read_bytes(uri, max_bytes=size)
    except TooLargeError:
        data = b""  # larger than recorded, so it was altered
    except NotFoundError as error:
        raise _incomplete(uri, error) from error
    if len(data) != size or hashlib.sha256(data).hexdigest() != record["files"][name]:
        raise ReleaseError(
            f"{name} of {folder} was altered: its SHA-256 does not match its record: {RESTORE}"
        )
    return data


def _incomplete(uri: str, error: StorageError) -> IncompleteReleaseError:
    """What to raise if a file is missing or too large; an outage stays a StorageError."""
    if isinstance(error, TooLargeError):
        return IncompleteReleaseError(f"{error}, or use another version")
    return IncompleteReleaseError(f"{uri} is missing: {RESTORE}")
