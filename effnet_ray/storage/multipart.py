"""Uploads in parts that were begun and not finished: billed, and in no listing of objects.

s3fs uploads what is large in parts; who is killed in between leaves them. A disk has none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class Upload:
    """One that is not finished."""

    path: str
    """Of the object it would be, below the URI that was asked about."""
    id: str
    """By which S3 knows it."""
    begun: float
    """Seconds since 1970, by the storage's clock."""


def list_unfinished_uploads(uri: str) -> Iterator[Upload]:
    """Those of objects below the URI, page by page. Raises StorageError."""
    if not storage.is_remote(uri):
        return
    prefix, more = _place(uri)[1], dict[str, str]()
    while True:
        page = _asked(uri, "list the uploads of", "list_multipart_uploads", Prefix=prefix, **more)
        for item in page.get("Uploads", ()):
            path = item["Key"].removeprefix(prefix)
            yield Upload(path, item["UploadId"], item["Initiated"].timestamp())
        marks = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        more = {name: page[mark] for name, mark in marks.items() if page.get(mark)}
        if not (page.get("IsTruncated") and more):
            return


def abort(uri: str, upload: Upload) -> None:
    """Drop its parts; nothing where it was finished or aborted meanwhile. Raises StorageError."""
    key = _place(uri)[1] + upload.path
    _asked(uri, "abort an upload to", "abort_multipart_upload", Key=key, UploadId=upload.id)


def _asked(uri: str, verb: str, method: str, **more: Any) -> dict[str, Any]:
    """What S3 answers; empty where it says NoSuchUpload, as rclone 1.75 does of a whole bucket."""
    try:
        found = storage.call_s3(uri, verb, "_call_s3", method, Bucket=_place(uri)[0], **more)
    except NotFoundError:
        return {}
    return dict(found)


def _place(uri: str) -> tuple[str, str]:
    """Bucket, and how keys below the URI begin."""
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    return bucket, f"{key}/" if key else ""
