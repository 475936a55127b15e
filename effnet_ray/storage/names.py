"""Names that are safe as one file or folder name on every kind of storage."""

import re

from effnet_ray.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, noun: str, error: type[InputError]) -> str:
    """Return the name of a `noun` unchanged. Raises `error` if it is not a safe file name."""
    if not NAME.fullmatch(name):
        raise error(
            f"{name!r} cannot be the name of {noun}: use up to 100 letters, digits, '.', '_' and "
            "'-', starting with a letter or digit"
        )
    return name
