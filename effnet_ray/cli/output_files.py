"""Files that a job writes where a flag says: checked before any work."""

import csv
import io

from effnet_ray.errors import DatasetError, RecipeError


def output_uri(uri: str, flag: str, suffix: str) -> str:
    """The URI to write a file to; empty for none.

    Raises InputError if it has another suffix or cannot be written.
    """
    if not uri:
        return ""
    from effnet_ray import storage
    from effnet_ray.preflight.permissions import check_writable

    if not uri.endswith(suffix):
        raise RecipeError(f"{flag} is {uri!r}: expected a file name such as out{suffix}")
    absolute = storage.absolute(uri)
    no_bucket = storage.is_remote(absolute) and not storage.bucket_and_key(absolute)[1]
    if no_bucket or storage.is_local_folder(absolute):  # s3://FILE has no key
        raise RecipeError(f"{flag} is {uri!r}: expected a file, such as s3://bucket/out{suffix}")
    check_writable(absolute.rpartition("/")[0] or "/", f"the {flag}")
    return absolute


def refuse_filled_in(uri: str, column: str) -> None:
    """Raise DatasetError if a CSV that would be replaced has values in a column for a person."""
    from effnet_ray import storage

    if not uri or not storage.exists(uri):
        return
    text = storage.read_bytes(uri).decode(errors="replace")
    if any((row.get(column) or "").strip() for row in csv.DictReader(io.StringIO(text))):
        raise DatasetError(
            f"{uri} has values in the column {column!r}, which would be lost: choose another "
            "file, or move this one"
        )
