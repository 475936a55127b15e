"""References to releases: NAME@vN or NAME@ALIAS."""

import re
from dataclasses import dataclass

from effnet_ray.errors import ReleaseError
from effnet_ray.storage.names import NAME, check_name

VERSION = re.compile(r"v(\d{1,9})")
BEST = "best"
"""The alias that publishing moves to the release with the best eval score."""


@dataclass(frozen=True, slots=True)
class Release:
    """One published version of a model."""

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
    """A parsed reference. With neither version nor alias it is the model's name alone."""

    name: str
    version: int | None = None
    alias: str = ""


def parse_reference(reference: str) -> Reference:
    """Parse NAME, NAME@vN or NAME@ALIAS. Raises ReleaseError for anything else."""
    name, at, suffix = reference.partition("@")
    if not NAME.fullmatch(name) or (at and not NAME.fullmatch(suffix)):
        raise ReleaseError(
            f"{reference!r} is not a valid reference to a release: expected NAME@vN or "
            "NAME@ALIAS, as in quickstart@v1"
        )
    version = VERSION.fullmatch(suffix)
    return Reference(name, int(version[1])) if version else Reference(name, alias=suffix)


def check_model_name(name: str) -> str:
    """Return the model's name. Raises ReleaseError if it is not a safe folder name."""
    return check_name(name, "a model", ReleaseError)


def check_alias_name(name: str) -> str:
    """Return the alias. Raises ReleaseError if it looks like a version or is no safe file name."""
    if VERSION.fullmatch(name):
        raise ReleaseError(f"alias {name!r} looks like a version number: choose another name")
    return check_name(name, "an alias", ReleaseError)
