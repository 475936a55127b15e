"""One listing of a model's folder: its versions, claims, tombstones and aliases."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.release.names import Release
from effnet_ray.release_format import layout
from effnet_ray.release_format.record import read_record
from effnet_ray.storage.checksummed_json import RESTORE


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder as it was when it was listed. Versions are numbers from 1."""

    name: str
    uri: str
    files: Mapping[str, storage.Entry]
    """All files, hidden ones included, by path below the folder."""

    @property
    def store(self) -> str:
        """URI of the store."""
        return self.uri.rpartition("/")[0]

    @property
    def versions(self) -> list[int]:
        """The complete releases, ascending."""
        return sorted(self.recorded - self.deleted)

    @property
    def recorded(self) -> set[int]:
        """Versions that have a release.json."""
        return self._versions(layout.RECORD_PATH)

    @property
    def claimed(self) -> set[int]:
        """Versions whose number a publisher has claimed."""
        return self._versions(layout.CLAIM_PATH)

    @property
    def unfinished(self) -> list[int]:
        """Claimed versions without a release.json.

        Their publish is running or was interrupted, or the release.json was lost.
        """
        return sorted(self.claimed - self.recorded - self.deleted)

    @property
    def deleted(self) -> set[int]:
        """Versions that have a tombstone."""
        return self._versions(layout.TOMBSTONE_PATH)

    @property
    def next(self) -> int:
        """The lowest number above all that are in use or were used.

        Raises ReleaseError if there is none left, which is no publisher's work.
        """
        last = max(self.recorded | self.claimed | self.deleted, default=0)
        if last == layout.MAX_VERSION:
            raise ReleaseError(
                f"{self.uri} has a version {last:,}, after which there is no number: delete its "
                "folder, claim and tombstone if nobody needs them"
            )
        return last + 1

    @property
    def aliases(self) -> list[str]:
        """Names of the aliases, sorted."""
        matches = (layout.ALIAS_PATH.fullmatch(path) for path in self.files)
        return sorted(match[1] for match in matches if match)

    def release(self, version: int) -> Release:
        """The release of this number, whether or not it exists."""
        return Release(self.name, version, storage.join(self.uri, layout.version_folder(version)))

    def claim_uri(self, version: int) -> str:
        """URI of a version's claim."""
        return storage.join(self.uri, layout.claim_path(version))

    def tombstone_uri(self, version: int) -> str:
        """URI of a version's tombstone."""
        return storage.join(self.uri, layout.tombstone_path(version))

    def record(self, version: int) -> dict[str, Any]:
        """Read a version's release.json. Raises ReleaseError if it is missing or damaged."""
        uri = self.release(version).uri
        record = read_record(uri)
        if (record.get("name"), record.get("version")) != (self.name, version):
            raise ReleaseError(f"{uri} contains a release with another name or version: {RESTORE}")
        return record

    def describe_contents(self) -> str:
        """The versions and aliases to choose from, separated by commas."""
        names = [f"v{version}" for version in self.versions] + self.aliases
        return ", ".join(f"{self.name}@{name}" for name in names) or "no releases"

    def require(self, version: int) -> Release:
        """The release. Raises ReleaseError, listing what there is, if it does not exist."""
        if version in self.versions:
            return self.release(version)
        reason = "was deleted from" if version in self.deleted else "is not in"
        raise ReleaseError(
            f"{self.name}@v{version} {reason} {self.store}; it has: {self.describe_contents()}"
        )

    def _versions(self, pattern: re.Pattern[str]) -> set[int]:
        matches = (pattern.fullmatch(path) for path in self.files)
        numbers = {match[1]: int(match[1]) for match in matches if match}
        # v00001 is not the folder of version 1, and there is no version 0.
        return {number for text, number in numbers.items() if text == f"{number:04d}" and number}


def list_model(store: str, name: str) -> ModelFolder:
    """List a model's folder; `name` is a valid one. Raises StorageError."""
    uri = storage.join(store, name)
    return ModelFolder(name, uri, storage.entries(uri, hidden=True))
