"""Where S3 is, by the standard environment: the server, its region, the proxy before it."""

import os
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

from effnet_ray.errors import StorageError
from effnet_ray.redaction import has_credentials, redact

DEFAULT_REGION = "us-east-1"
"""S3 servers without regions accept it."""


def endpoint() -> str:
    """The URL of a server other than AWS; empty for AWS. Raises StorageError if it is no URL."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        value = os.environ.get(name, "")
        if value:
            if has_credentials(value):
                raise StorageError(
                    f"{name} is {redact(value)!r}, with credentials in it: set AWS_ACCESS_KEY_ID "
                    "and AWS_SECRET_ACCESS_KEY instead"
                )
            if not _is_server(value):
                raise StorageError(
                    f"{name} is {value!r}: expected http(s)://HOST:PORT, with letters, digits, "
                    "hyphens and dots in HOST"
                )
            return value
    return ""


def check_environment() -> None:
    """Raise StorageError for an endpoint, a proxy or a CA bundle that cannot be used."""
    endpoint()
    if not _is_server(proxy() or "http://none"):
        raise StorageError(
            f"HTTP_PROXY or HTTPS_PROXY is {redact(proxy())!r}: expected http://HOST:PORT"
        )
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and not Path(bundle).exists():
        raise StorageError(f"AWS_CA_BUNDLE is {bundle!r}, which does not exist: correct it")


def _is_server(url: str) -> bool:
    """Whether a URL names a server as the S3 libraries accept it."""
    try:
        parts = urlparse(url)
        server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        named = is_valid_endpoint_url(server) or is_valid_ipv6_endpoint_url(server)
        return parts.scheme in ("http", "https") and named and parts.port != 0
    except ValueError:  # of brackets, or of the port
        return False


def region() -> str:
    """The AWS region."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


def proxy() -> str:
    """The URL of the proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name; empty for none."""
    server = urlparse(endpoint() or f"https://s3.{region()}.amazonaws.com")
    url = "" if proxy_bypass(server.netloc) else getproxies().get(server.scheme, "")
    return url if "://" in url or not url else f"http://{url}"


def what_to_check() -> str:
    """What to check if the server does not answer."""
    if not proxy():
        return "check AWS_ENDPOINT_URL and the network"
    address = urlparse(proxy()).netloc.rpartition("@")[2]  # without a password
    server = urlparse(endpoint()).hostname or ".amazonaws.com"
    return (
        f"check the proxy {address} of HTTP_PROXY or HTTPS_PROXY, or add {server} to NO_PROXY if "
        "it is to be reached without"
    )
