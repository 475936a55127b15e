"""Where a job reads and writes: whether it may."""

import os
import uuid
from collections.abc import Iterator

import botocore.session
from botocore.exceptions import BotoCoreError

from effnet_ray import storage
from effnet_ray.errors import StorageError
from effnet_ray.preflight.findings import Finding, problem, run_check
from effnet_ray.storage import conditional

PROBE = b"effnet_ray writes this to see whether it may, and deletes it."


def check_places(
    data: str, runs: str, store: str, *, single_writer: bool = False
) -> Iterator[Finding]:
    """Credentials for S3 where it is used, and whether runs and releases can be written."""
    if any(map(storage.is_remote, (data, runs, store))):
        yield credentials()
    yield run_check("runs", lambda: writable(runs, "checkpoints and records"))
    yield run_check("store", lambda: publishable(store, single_writer=single_writer))


def publishable(uri: str, *, single_writer: bool) -> str:
    """`writable`, and whether two publishers at once would be kept apart there.

    Raises StorageError.
    """
    found = writable(uri, "releases")
    conditional.require_conditional_writes(
        storage.absolute(uri), "releases", single_writer=single_writer
    )
    return found + ("; by one writer at a time, as told" if single_writer else "")


def credentials() -> Finding:
    """How calls to S3 are signed; never with what."""
    try:
        found = botocore.session.get_session().get_credentials()
        how, why = (found.method if found else ""), "none found"
    except BotoCoreError as error:
        how, why = "", str(error)
    where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    return problem(
        "S3 credentials",
        "" if how else why,
        f"{how}, for {where}",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an instance "
        "role",
    )


def writable(uri: str, what: str) -> str:
    """Write an object below the URI, read it back and delete it; say so.

    Raises StorageError, before anything is trained that could not be kept.
    """
    uri = storage.absolute(uri)
    probe = storage.join(uri, f".probe-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(probe, PROBE)
        if storage.read_bytes(probe) != PROBE:
            raise StorageError(f"{probe} is not what was written to it")
        storage.delete(probe)
    except StorageError as error:
        raise StorageError(f"{what} cannot be kept at {uri}: {error}") from error
    return f"{uri}: written, read and deleted"
