"""ModelStore and Release: immutable, versioned models in a folder or a bucket.

    STORE/NAME/vNNNN/model.safetensors   weights, in timm's naming
    STORE/NAME/vNNNN/config.json         timm's hub format: architecture, labels, preprocessing
    STORE/NAME/vNNNN/recipe.json         what ran
    STORE/NAME/vNNNN/metrics.json        what it reached, epoch by epoch
    STORE/NAME/vNNNN/README.md           for a reader
    STORE/NAME/vNNNN/release.json        SHA-256 of all of these; written last, create-only

A release is complete or absent, and never overwritten: what has no release.json is not there.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError, StorageError

RECORD = "release.json"
VERSION_FOLDER = re.compile(r"v(\d{4,})")
REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})@v(\d+)")


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
class ModelStore:
    """Where releases live: a local folder or an s3:// prefix."""

    uri: str

    def publish(
        self, name: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]
    ) -> Release:
        """Publish `files` (name → content) as the next version of `name`.

        Publishing what is already there, the same files of the same run, returns the release
        that exists: a driver that died after publishing may simply try again.
        """
        digests = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}
        for version in self.versions(name):
            record = self._record(self._release(name, version))
            if record["files"] == digests and record["run"] == provenance["run"]:
                return self._release(name, version)
        while True:
            release = self._release(name, max(self.versions(name), default=0) + 1)
            for file, data in files.items():
                storage.write_bytes(storage.join(release.uri, file), data)
            record = {"name": name, "version": release.version, "files": digests, **provenance}
            try:
                storage.write_bytes(
                    storage.join(release.uri, RECORD),
                    json.dumps(record, indent=1, ensure_ascii=False).encode(),
                    exclusive=True,
                )
            except FileExistsError:
                continue  # another driver took the number: take the next
            return release

    def versions(self, name: str) -> list[int]:
        """Numbers of the complete versions of a model, ascending."""
        found = []
        for folder in storage.folders(storage.join(self.uri, name)):
            match = VERSION_FOLDER.fullmatch(folder)
            record = storage.join(self.uri, name, folder, RECORD)
            if match and storage.exists(record):
                found.append(int(match[1]))
        return sorted(found)

    def find(self, reference: str) -> Release:
        """The release called `name@vN`, its files verified.

        Raises ReleaseError where there is none, naming the versions there are, or it is damaged.
        """
        match = REFERENCE.fullmatch(reference)
        if not match:
            raise ReleaseError(
                f"{reference!r} is no release: expected NAME@vN, as in quickstart@v1"
            )
        name, version = match[1], int(match[2])
        versions = self.versions(name)
        if version not in versions:
            have = ", ".join(f"{name}@v{number}" for number in versions) or "no version of it"
            raise ReleaseError(f"{reference} is not in {self.uri}: it has {have}")
        release = self._release(name, version)
        verify(release.uri)
        return release

    def _release(self, name: str, version: int) -> Release:
        return Release(name, version, storage.join(self.uri, name, f"v{version:04d}"))

    def _record(self, release: Release) -> dict[str, Any]:
        return _read_record(release.uri)


def _read_record(uri: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, RECORD)))
        record["files"].items()
    except (StorageError, ValueError, KeyError, AttributeError) as error:
        raise ReleaseError(
            f"{uri} is no complete release ({error}): expected {RECORD} with the digest of every "
            "file, written last"
        ) from error
    return record


def verify(uri: str) -> None:
    """Hold every file of the release folder `uri` against release.json.

    Raises ReleaseError naming the first file that is missing or altered.
    """
    for file, digest in _read_record(uri)["files"].items():
        data = storage.read_bytes(storage.join(uri, file))
        if hashlib.sha256(data).hexdigest() != digest:
            raise ReleaseError(
                f"{file} of {uri} was altered: its SHA-256 is not the one in {RECORD}: restore "
                "it, or use another version"
            )


def record_files(**records: Any) -> dict[str, bytes]:
    """`name=dataclass or dict` → `{'name.json': …}`."""
    return {
        f"{name}.json": json.dumps(
            value if isinstance(value, dict) else asdict(value), indent=1, ensure_ascii=False
        ).encode()
        for name, value in records.items()
    }
