"""Unfinished multipart uploads: S3 bills their parts, and no listing of objects shows them.

s3fs uploads large files in parts; a killed process leaves the parts behind. A disk has none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class Upload:
    """An unfinished multipart upload."""

    path: str
    """Path of the future object, relative to the listed URI."""
    id: str
    """S3's UploadId."""
    started: float
    """Seconds since 1970, by the storage's clock."""


def list_unfinished_uploads(uri: str) -> Iterator[Upload]:
    """The unfinished uploads of objects below the URI, page by page. Raises StorageError."""
    if storage.scheme(uri) != storage.S3:
        return
    prefix = _bucket_and_prefix(uri)[1]
    parameters: dict[str, Any] = {"Prefix": prefix}
    while True:
        page = _request(uri, "list the uploads of", "list_multipart_uploads", **parameters)
        for item in page.get("Uploads", ()):
            path = item["Key"].removeprefix(prefix)
            yield Upload(path, item["UploadId"], item["Initiated"].timestamp())
        next_page = {
            marker: page[f"Next{marker}"]
            for marker in ("KeyMarker", "UploadIdMarker")
            if page.get(f"Next{marker}")
        }
        if not (page.get("IsTruncated") and next_page):
            return
        parameters = {"Prefix": prefix, **next_page}


def abort(uri: str, upload: Upload) -> None:
    """Delete the parts of an upload unless it is finished or aborted. Raises StorageError."""
    key = _bucket_and_prefix(uri)[1] + upload.path
    parameters = {"Key": key, "UploadId": upload.id}
    _request(uri, "abort an upload to", "abort_multipart_upload", **parameters)


def _request(uri: str, verb: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """S3's response; empty for NoSuchUpload, which rclone 1.75 answers for a whole bucket."""
    from effnet_ray.storage import s3

    try:
        bucket = _bucket_and_prefix(uri)[0]
        return dict(s3.request(uri, verb, operation, Bucket=bucket, **parameters))
    except NotFoundError:
        return {}


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    """The bucket, and the prefix of the keys below the URI."""
    bucket, key = storage.bucket_and_key(uri.rstrip("/"))
    return bucket, f"{key}/" if key else ""
