"""release.json: the record of a release, and reading a release's files through it.

It lists every file of the release with its SHA-256, so what is read is what was published.
"""

from typing import Any

from effnet_ray import storage
from effnet_ray.release_format.layout import RECORD
from effnet_ray.storage import checksummed_json


def record_uri(folder: str) -> str:
    """URI of a release folder's release.json."""
    return storage.join(folder, RECORD)


def is_release(folder: str) -> bool:
    """Return whether the folder holds a complete release: its release.json is written last."""
    return storage.exists(record_uri(folder))


def read_record(folder: str) -> dict[str, Any]:
    """Read a folder's release.json. Raises ReleaseError if it is missing, altered or malformed."""
    uri = record_uri(folder)
    return check_record(checksummed_json.read(uri), uri)


def check_record(record: dict[str, Any], uri: str) -> dict[str, Any]:
    """Return the record if its list of files is well formed. Raises ReleaseError if it is not."""
    return checksummed_json.check_files(record, uri, reserved=RECORD)


def read_file(folder: str, name: str) -> bytes:
    """Read one file of a release. Raises ReleaseError if it does not match release.json."""
    return checksummed_json.read_file(folder, name, read_record(folder))


def verify_files(folder: str) -> dict[str, Any]:
    """Read every file of a release, and return its record.

    Raises ReleaseError naming the first file that is missing or was altered.
    """
    record = read_record(folder)
    for name in record["files"]:
        checksummed_json.read_file(folder, name, record)
    return record
