"""Keeps secrets out of messages.

Credentials belong in the environment and in files of their own. Every error of this package and
every quoted error of a library passes `redact`. URIs and arguments with credentials are refused,
since records, logs and lists of processes would repeat them.
"""

import os
import re
from collections.abc import Iterator
from urllib.parse import quote

MASK = "***"
SECRET_NAME = r"(?:secret|token|passw(?:or)?d|api[_-]?key|credential)s?"
TOKENS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # an access key's id
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:hf|gh[pousr])_[A-Za-z0-9]{30,}"  # Hugging Face, GitHub
    r"|\bya29\.[\w-]+"  # Google
)
"""Secrets that are known by their form."""
USER = re.compile(
    r"(?<=://)(?:[^/\s]*@"
    r"|[^/\s@:\[]*:(?!\d+/)[^\s@]*@)"  # AWS's secret keys may contain a slash; not a port
)
"""User name and password in a URL."""
SIGNATURE = re.compile(
    r"(?i)(?<=[?&;])((?:x-(?:amz|goog)-(?:signature|credential|security-token)"
    rf"|awsaccesskeyid|signature|sig|[\w.-]*{SECRET_NAME})=)[^&\s'\"]+"
)
"""Parameters of a URL that give access: those of presigned URLs, and tokens."""
AUTHORIZATION = re.compile(r"(?i)\b(authorization\W{1,6}(?:(?:basic|bearer)\s+)?)[^\s'\",]{8,}")
"""A header as some servers repeat it in their answers."""
SECRET_VARIABLE = re.compile(
    rf"(?i)(?:\w*(?:{SECRET_NAME}|access_?key(?:_?id)?|private_?key)|\w+_(?:key|pass|username))"
)
"""Names of environment variables that hold a secret."""
MIN_SECRET_CHARS = 8
"""Shorter values, such as `false`, are words of ordinary messages."""


def redact(text: str) -> str:
    """The text without users of URLs, and with *** for tokens, signatures, and secrets of the
    environment."""
    text = USER.sub("", TOKENS.sub(MASK, text))
    text = AUTHORIZATION.sub(rf"\1{MASK}", SIGNATURE.sub(rf"\1{MASK}", text))
    for secret in sorted(_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, MASK).replace(quote(secret, safe=""), MASK)
    return text


def has_credentials(uri: str) -> bool:
    """Whether a URI contains a user name, a password or a signature."""
    return bool(USER.search(uri) or SIGNATURE.search(uri))


def _environment_secrets() -> Iterator[str]:
    """Values of variables whose names say so, and the passwords of URLs in any variable."""
    for name in list(os.environ):  # another thread may change it
        value = os.environ.get(name, "")
        user = USER.search(value)
        if user:
            value = user.group().rstrip("@").partition(":")[2]
        elif not SECRET_VARIABLE.fullmatch(name) or _is_path(value):
            continue
        if len(value) >= MIN_SECRET_CHARS:
            yield value


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))
