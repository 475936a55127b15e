"""Checks that a job can write its runs and releases."""

from collections.abc import Iterator

import botocore.session
from botocore.exceptions import BotoCoreError

from effnet_ray import storage
from effnet_ray.errors import StorageError
from effnet_ray.preflight.findings import Finding, problem, run_check
from effnet_ray.storage import conditional
from effnet_ray.storage.s3_endpoint import endpoint

PROBE = b"effnet_ray writes this object to check write access, and deletes it."


def check_places(
    data: str, runs: str, store: str, *, single_writer: bool = False
) -> Iterator[Finding]:
    """S3 credentials, if any URI is on S3, and write access to runs and store."""
    if any(storage.scheme(uri) == storage.S3 for uri in (data, runs, store)):
        yield check_credentials()
    yield run_check("runs", lambda: check_writable(runs, "checkpoints and records"))
    yield run_check("store", lambda: check_publishable(store, single_writer=single_writer))


def check_publishable(uri: str, *, single_writer: bool) -> str:
    """`check_writable`, and whether concurrent publishers are safe: conditional writes.

    Raises StorageError.
    """
    result = check_writable(uri, "releases")
    conditional.require_conditional_writes(storage.absolute(uri), single_writer=single_writer)
    return result + ("; single writer" if single_writer else "")


def check_credentials() -> Finding:
    """How S3 requests are signed. Never shows a key."""

    check = "S3 credentials"
    try:
        server = endpoint() or "AWS"
        credentials = botocore.session.get_session().get_credentials()
        method, reason = (credentials.method if credentials else ""), "none found"
    except StorageError as error:
        return Finding(check=check, ok=False, found=str(error))
    except BotoCoreError as error:
        method, reason = "", str(error)
    return problem(
        check,
        "" if method else reason,
        f"{method}, for {server}",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an instance "
        "role",
    )


def check_writable(uri: str, what: str) -> str:
    """Write an object below the URI, read it back and delete it; returns what was done.

    Raises StorageError, with `what` could not be stored there.
    """
    uri = storage.absolute(uri)
    probe = conditional.probe_uri(uri)
    try:
        storage.write_bytes(probe, PROBE)
        if storage.read_bytes(probe) != PROBE:
            raise StorageError(f"{probe} returns other bytes than were written to it")
        storage.delete(probe)
    except StorageError as error:
        raise StorageError(f"{what} cannot be stored at {uri}: {error}") from error
    return f"{uri}: written, read and deleted"
