"""What a model's folder holds, at one look.

STORE/NAME/vNNNN/…                 a release; release.json is written last
STORE/NAME/claims/vNNNN.json       that release.json, from the moment its number is taken
STORE/NAME/tombstones/vNNNN.json   that the version is gone for good
STORE/NAME/aliases/ALIAS.json      which version an alias means, and meant
STORE/NAME/staging/<16 hex>/…      what is about to be released
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.release.names import Release
from effnet_ray.storage import checksummed_json

CLAIMS, TOMBSTONES, ALIASES, STAGING = "claims", "tombstones", "aliases", "staging"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder. Versions are numbers from 1."""

    name: str
    uri: str
    files: Mapping[str, storage.Entry]
    """By path below the folder, hidden ones too."""

    @property
    def versions(self) -> list[int]:
        """The releases that are there, ascending."""
        return sorted(self.recorded - self.buried)

    @property
    def recorded(self) -> set[int]:
        """Versions whose release.json is there."""
        return self._numbers(rf"v(\d{{4,9}})/{re.escape(checksummed_json.RECORD)}")

    @property
    def claimed(self) -> set[int]:
        """Versions whose number is taken."""
        return self._numbers(rf"{CLAIMS}/v(\d{{4,9}})\.json")

    @property
    def unfinished(self) -> list[int]:
        """Versions that somebody is publishing, or died at, or whose record was lost."""
        return sorted(self.claimed - self.recorded - self.buried)

    @property
    def buried(self) -> set[int]:
        """Versions that are gone for good."""
        return self._numbers(rf"{TOMBSTONES}/v(\d{{4,9}})\.json")

    @property
    def next(self) -> int:
        """The number that nobody has taken."""
        return max(self.recorded | self.claimed | self.buried, default=0) + 1

    @property
    def aliases(self) -> list[str]:
        """Names of the aliases, sorted."""
        found = (re.fullmatch(rf"{ALIASES}/([^/.][^/]*)\.json", path) for path in self.files)
        return sorted(match[1] for match in found if match)

    def release(self, version: int) -> Release:
        """What the version would be, whether it is there or not."""
        return Release(self.name, version, storage.join(self.uri, f"v{version:04d}"))

    def claim(self, version: int) -> str:
        """URI."""
        return storage.join(self.uri, CLAIMS, f"v{version:04d}.json")

    def tombstone(self, version: int) -> str:
        """URI."""
        return storage.join(self.uri, TOMBSTONES, f"v{version:04d}.json")

    def record(self, version: int) -> dict[str, Any]:
        """A version's release.json. Raises ReleaseError where it is missing or not as it was."""
        uri = self.release(version).uri
        record = checksummed_json.read(uri)
        if (record.get("name"), record.get("version")) != (self.name, version):
            raise ReleaseError(f"{uri} holds the release of another name or version: restore it")
        return record

    def have(self) -> str:
        """What there is to choose from, as a sentence's end."""
        names = [f"v{version}" for version in self.versions] + self.aliases
        return ", ".join(f"{self.name}@{name}" for name in names) or "no version of it"

    def existing(self, version: int) -> Release:
        """The release. Raises ReleaseError where it is not there, naming what is."""
        if version in self.versions:
            return self.release(version)
        why = "was deleted from" if version in self.buried else "is not in"
        store = self.uri.rpartition("/")[0]
        raise ReleaseError(f"{self.name}@v{version} {why} {store}: it has {self.have()}")

    def _numbers(self, pattern: str) -> set[int]:
        found = (re.fullmatch(pattern, path) for path in self.files)
        numbers = {match[1]: int(match[1]) for match in found if match}
        return {number for text, number in numbers.items() if text == f"{number:04d}" and number}


def list_model(store: str, name: str) -> ModelFolder:
    """What is there now. `name` is a checked one. Raises StorageError."""
    uri = storage.join(store, name)
    return ModelFolder(name, uri, storage.entries(uri, hidden=True))
