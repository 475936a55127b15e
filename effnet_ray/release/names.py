"""What a release is called: NAME@vN, or NAME@ALIAS. Names are folders, so they are checked."""

import re
from dataclasses import dataclass

from effnet_ray.errors import ReleaseError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION = re.compile(r"v(\d{1,9})")
BEST = "best"
"""The alias that moves by itself."""


@dataclass(frozen=True, slots=True)
class Release:
    """One published model."""

    name: str
    version: int
    uri: str
    """Its folder."""

    @property
    def reference(self) -> str:
        """`name@vN`."""
        return f"{self.name}@v{self.version}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What somebody asked for; neither version nor alias: all of the model."""

    name: str
    version: int | None = None
    alias: str = ""


def parse(reference: str) -> Reference:
    """NAME, NAME@vN or NAME@ALIAS. Raises ReleaseError."""
    name, mark, which = reference.partition("@")
    if not NAME.fullmatch(name) or (mark and not NAME.fullmatch(which)):
        raise ReleaseError(
            f"{reference!r} is no release: expected NAME@vN or NAME@ALIAS, as in quickstart@v1"
        )
    version = VERSION.fullmatch(which)
    return Reference(name, int(version[1])) if version else Reference(name, alias=which)


def check_model(name: str) -> str:
    """The name. Raises ReleaseError where it cannot be a folder's."""
    return _check("a model", name)


def check_alias(name: str) -> str:
    """The name. Raises ReleaseError where it cannot be a file's, or reads as a version's."""
    if VERSION.fullmatch(name):
        raise ReleaseError(f"alias {name!r} would read as a version: choose another name")
    return _check("an alias", name)


def _check(what: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise ReleaseError(
            f"{name!r} cannot be the name of {what}: use up to 100 of letters, digits, '.', "
            "'_' and '-', a letter or digit first"
        )
    return name
