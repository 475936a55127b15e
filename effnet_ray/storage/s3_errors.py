"""Errors of the S3 libraries (botocore, s3fs, Arrow): which are transient, and what they mean."""

import os

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError as BotoConnectionError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
)

from effnet_ray.errors import (
    ConflictError,
    OutageError,
    StorageError,
    UnsupportedError,
    one_line,
)
from effnet_ray.storage.s3_endpoint import proxy, what_to_check

LIBRARY_ERRORS = (OSError, ClientError, BotoCoreError)
"""Everything that a request to S3 may raise."""

CREDENTIAL_ERRORS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound)
CONNECTION_ERRORS = (
    TimeoutError,
    ConnectionError,
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    aiohttp.ClientError,
)
NOT_IMPLEMENTED = 501
"""The one 5xx status that repeating does not help: the server lacks the feature."""
RENEW = "renew them (AWS_SESSION_TOKEN, or the file of AWS_PROFILE)"
EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
"""Error codes for temporary credentials that were valid once."""
OTHER_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
OTHER_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
}
TRANSIENT_CODES = {
    "RequestTimeout",
    "SlowDown",
    "OperationAborted",
    "ConditionalRequestConflict",
    "400",
}
"""Error codes of 4xx answers that pass. A HEAD answer has no body to hold a code, so
RequestTimeout and ExpiredToken come as a plain 400 there."""
BAD_REQUEST = "(HTTP status 400)"
TRANSIENT_ARROW_TEXTS = (
    "AWS Error NETWORK_CONNECTION",
    "AWS Error SLOW_DOWN",
    "AWS Error SERVICE_UNAVAILABLE",
    "AWS Error INTERNAL_FAILURE",
    "AWS Error REQUEST_TIMEOUT",
    "(HTTP status 5",
    "(HTTP status 429)",
    BAD_REQUEST,
    "curlCode",
)
"""Arrow raises every S3 error as OSError; only the text tells them apart."""


def is_transient(error: BaseException) -> bool:
    """Whether repeating the request may help: timeouts, broken connections, 5xx, 429.

    Expired credentials may be renewed meanwhile, but not those of this process's environment.
    """
    response = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(response, ClientError):
        status = response.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = status >= 500 and status != NOT_IMPLEMENTED
        renewable = error_code(error) in EXPIRED_CODES and "AWS_SESSION_TOKEN" not in os.environ
        return busy or status == 429 or renewable or error_code(error) in TRANSIENT_CODES
    if isinstance(error, CONNECTION_ERRORS):
        return True
    return isinstance(error, OSError) and any(text in str(error) for text in TRANSIENT_ARROW_TEXTS)


def may_be_expired(error: BaseException) -> bool:
    """Whether the credentials may have expired; the answer to a HEAD does not say."""
    return error_code(error) in (*EXPIRED_CODES, "400") or BAD_REQUEST in str(error)


def error_code(error: BaseException) -> str:
    """The error code of S3's response; empty if there is none."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return str(getattr(cause, "response", {}).get("Error", {}).get("Code", ""))


def translate(error: BaseException, uri: str, verb: str) -> StorageError:
    """The StorageError for an error of an S3 library: "cannot VERB URI: …"."""
    message = f"cannot {verb} {uri}: {one_line(error)}"
    if isinstance(error, CREDENTIAL_ERRORS):
        return StorageError(
            f"cannot {verb} {uri}: no usable S3 credentials ({error}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an instance role"
        )
    if error_code(error) in EXPIRED_CODES or EXPIRED_CODES & set(str(error).split()):
        return OutageError(f"cannot {verb} {uri}: the S3 credentials have expired: {RENEW}")
    if error_code(error) in OTHER_CLOCK:
        return StorageError(f"{message}: this machine's clock is wrong: set it by NTP")
    if error_code(error) in OTHER_REGION:
        return StorageError(f"{message}: set AWS_REGION to the region of the bucket")
    if isinstance(error, PermissionError):
        return StorageError(
            f"cannot {verb} {uri}: access denied ({error}): check the keys and their permissions"
        )
    if isinstance(error, ProxyConnectionError):
        return OutageError(f"cannot {verb} {uri}: no answer from the proxy: {what_to_check()}")
    if isinstance(error, EndpointConnectionError):
        server = error.kwargs.get("endpoint_url", "S3")
        return OutageError(f"cannot {verb} {uri}: no answer from {server}: {what_to_check()}")
    if is_transient(error):
        checks = what_to_check() if proxy() else "check its load and the network"
        if may_be_expired(error):
            checks = f"if its credentials have expired, {RENEW}; else {checks}"
        return OutageError(
            f"{message}: object storage kept failing: {checks}, then run the same command again"
        )
    if error_code(error) in ("PreconditionFailed", "412"):
        return ConflictError(f"{uri} was changed by another writer: run the same command again")
    if error_code(error) in ("NotImplemented", "501"):
        return UnsupportedError(message)
    return StorageError(message)
