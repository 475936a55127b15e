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
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])"  # an access key's id, also in an encoded URL
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"
    r"|\b(?:hf|gh[pousr])_[A-Za-z0-9]{30,}"  # Hugging Face, GitHub
    r"|\bya29\.[\w-]+"  # Google
)
"""Secrets that are known by their form."""
USER = re.compile(
    r"(?<=://)(?:[^/\s]{0,300}@"
    r"|[^/\s@:\[]{0,300}:(?!\d+/)[^\s@]{0,300}@)"  # AWS's keys may contain a slash; not a port
)
"""User name and password in a URL."""
SIGNATURE = re.compile(
    r"(?i)(?<=[?&;])((?:x-(?:amz|goog)-(?:signature|credential|security-token)"
    rf"|awsaccesskeyid|signature|sig|[\w.-]*{SECRET_NAME})=)[^&\s'\"]+"
)
"""Parameters of a URL that give access: those of presigned URLs, and tokens."""
AUTHORIZATION = re.compile(
    r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?)[^\s'\",]{8,}"
)
"""A header as some servers repeat it in their answers."""
SECRET_VARIABLE = re.compile(rf"(?i)\w*(?:{SECRET_NAME}|access_?key|private_?key|_pass)")
"""Names of environment variables that hold a secret."""
MIN_SECRET_CHARS = 8
"""Shorter values, such as `false`, are words of ordinary messages."""


def redact(text: str) -> str:
    """The text without users of URLs, and with *** for tokens, signatures, and secrets of the
    environment."""
    text = _without_known_forms(text)
    for secret in sorted(_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, MASK).replace(quote(secret, safe=""), MASK)
    return text


def _without_known_forms(text: str) -> str:
    text = USER.sub("", TOKENS.sub(MASK, text))
    return AUTHORIZATION.sub(rf"\1{MASK}", SIGNATURE.sub(rf"\1{MASK}", text))


def is_secret(argument: str) -> bool:
    """Whether an argument contains a secret of a known form, or is one of the environment.

    A secret of the environment within a longer argument may be an ordinary word, such as a
    database's password `postgres` in a path.
    """
    value = argument.partition("=")[2] if argument.startswith("-") else argument
    return _without_known_forms(argument) != argument or value in {*_environment_secrets()}


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
