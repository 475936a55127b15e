"""URIs of files and objects: `s3://bucket/key` or a local path."""

import os

from effnet_ray.errors import StorageError

_S3 = "s3://"


def is_remote(uri: str) -> bool:
    """Whether the URI is in object storage.

    Raises StorageError for an unknown scheme or a missing bucket name.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return False
    if f"{scheme}://" != _S3:
        raise StorageError(f"{uri} has the scheme {scheme}://: use s3://bucket/prefix or a path")
    if not rest.split("/")[0]:
        raise StorageError(f"{uri} has no bucket: use s3://bucket/prefix")
    return True


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The bucket and the key of an `s3://` URI; the key is empty for the bucket itself."""
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    return bucket, key


def absolute(uri: str) -> str:
    """The URI without a trailing slash; a local path is made absolute and `~` is expanded."""
    return uri.rstrip("/") if is_remote(uri) else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    """`uri/part/…`."""
    return "/".join([uri.rstrip("/"), *parts])
