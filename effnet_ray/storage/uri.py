"""URIs of files and objects: `s3://bucket/key` or a local path."""

import os

from effnet_ray.errors import StorageError
from effnet_ray.redaction import has_credentials

LOCAL, S3 = "", "s3"
SCHEMES = (S3,)
"""Schemes of object storage; `storage.backend_of` has the module that implements each."""


def scheme(uri: str) -> str:
    """One of SCHEMES; LOCAL for a path.

    Raises StorageError for an unknown scheme, a missing bucket name, or credentials in the URI.
    """
    name, separator, rest = uri.partition("://")
    if not separator:
        return LOCAL
    if has_credentials(uri):
        raise StorageError(
            f"{uri} contains credentials, which records and logs would repeat: remove them from "
            "the URI, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if name not in SCHEMES:
        raise StorageError(f"{uri} has the scheme {name}://: use s3://bucket/prefix or a path")
    if not rest.split("/")[0]:
        raise StorageError(f"{uri} has no bucket: use s3://bucket/prefix")
    return name


def _is_utf8(text: str) -> bool:
    """Whether the text can be encoded: Python decodes other bytes of a path as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_remote(uri: str) -> bool:
    """Whether the URI is in object storage. Raises StorageError as `scheme`."""
    return scheme(uri) != LOCAL


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The bucket and the key of a remote URI; the key is empty for the bucket itself."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def absolute(uri: str) -> str:
    """The URI without a trailing slash; a local path is made absolute and `~` is expanded.

    Raises StorageError as `scheme`, for an empty URI, for the root of all folders, and for bytes
    that are no UTF-8: records could not hold them.
    """
    if not uri.strip():
        raise StorageError(f"a path is empty ({uri!r}): pass s3://bucket/prefix or a folder")
    if not _is_utf8(uri):
        raise StorageError(f"{uri!r} is not UTF-8: rename it")
    if is_remote(uri):
        return uri.rstrip("/")
    path = os.path.abspath(os.path.expanduser(uri))
    if path == "/":
        raise StorageError(f"{uri} is the root of this machine's files: choose a folder below it")
    return path


def join(uri: str, *parts: str) -> str:
    """`uri/part/…`."""
    return "/".join([uri.rstrip("/"), *parts])
