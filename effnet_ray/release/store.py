"""ModelStore: immutable, versioned models in a folder or a bucket, and aliases beside them.

    STORE/NAME/vNNNN/model.safetensors   weights, in timm's naming
    STORE/NAME/vNNNN/config.json         timm's hub format: architecture, labels, preprocessing
    STORE/NAME/vNNNN/recipe.json         what ran
    STORE/NAME/vNNNN/metrics.json        what it reached, epoch by epoch
    STORE/NAME/vNNNN/README.md           for a reader
    STORE/NAME/vNNNN/release.json        SHA-256 of all of these and its own; written last
    STORE/NAME/aliases/ALIAS.json        `shelf` names the rest

A release is complete or absent, and never overwritten: what has no release.json is not there.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.release import (
    aliases,
    maintenance,
    model_folder as shelves,
    names,
    publish as publishing,
)
from effnet_ray.release.aliases import Move
from effnet_ray.release.maintenance import STALE_AFTER_S, GcResult
from effnet_ray.release.model_folder import ModelFolder
from effnet_ray.release.names import BEST, NAME, Release
from effnet_ray.storage import conditional
from effnet_ray.storage.checksummed_json import verify

logger = logging.getLogger(__name__)

__all__ = ["ModelStore", "Release", "record_files", "verify"]


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did to aliases."""

    aliases: list[str]
    """Those that still mean what was deleted, and so nothing."""
    best: Move | None
    """The move of `best` to the best of what is left; None where it stays."""


@dataclass(frozen=True, slots=True)
class ModelStore:
    """Where releases live: a local folder or an s3:// prefix."""

    uri: str
    single_writer: bool = False
    """Whether whoever uses it answers for it that no two write there at once."""

    def publish(
        self, name: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]
    ) -> Release:
        """Publish `files` (name → content) as the next version of `name`; `best` may move to it.

        Publishing what is already there, the same weights of the same run, returns the release
        that exists: a driver that died may simply try again. Raises StorageError where the
        store's server cannot keep two publishers apart.
        """
        self._trusted()
        version = publishing.publish(self.uri, names.check_model(name), files, provenance)
        shelf = shelves.list_model(self.uri, name)
        _settle_best(shelf)
        return shelf.release(version)

    def released(self, name: str, *, run: str, weights_sha256: str = "") -> Release | None:
        """The release of `name` that has these weights of this run, if it is complete already.

        Whichever weights of the run, if none are given.
        """
        self._trusted()
        shelf = shelves.list_model(self.uri, names.check_model(name))
        version = publishing.released(shelf, run, weights_sha256)
        if version is None:
            return None
        _settle_best(shelf)  # its publisher may have died before
        return shelf.release(version)

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return [name for name in storage.folders(self.uri) if NAME.fullmatch(name)]

    def shelf(self, name: str) -> ModelFolder:
        """What there is of a model. Raises ReleaseError where there is nothing."""
        shelf = shelves.list_model(self.uri, names.check_model(name))
        if not shelf.files:
            have = ", ".join(self.models()) or "none"
            raise ReleaseError(
                f"{name} is not in {self.uri}: it has no version of it; models there: {have}"
            )
        return shelf

    def versions(self, name: str) -> list[int]:
        """Numbers of the complete versions of a model, ascending."""
        return shelves.list_model(self.uri, names.check_model(name)).versions

    def find(self, reference: str) -> Release:
        """The release called `name@vN` or `name@alias`, its files verified.

        Raises ReleaseError where there is none, naming what there is, or it is damaged.
        """
        shelf, version = self.resolve(reference)
        maintenance.verify(shelf, version)
        return shelf.release(version)

    def resolve(self, reference: str) -> tuple[ModelFolder, int]:
        """`find`, without looking at the files."""
        asked = names.parse(reference)
        shelf = self.shelf(asked.name)
        if asked.alias:
            return shelf, aliases.current(shelf, asked.alias).version
        if asked.version is None:
            raise ReleaseError(
                f"{reference!r} names no version (NAME@vN or NAME@ALIAS): {self.uri} has "
                f"{shelf.have()}"
            )
        return shelf, shelf.existing(asked.version).version

    def promote(self, reference: str, alias: str, *, force: bool = False) -> Move:
        """Let `alias` mean the release from now on.

        Raises ReleaseError where it is damaged, or worse than what the alias means, unless that
        is forced.
        """
        self._trusted()
        names.check_alias(alias)
        shelf, version = self.resolve(reference)
        maintenance.verify(shelf, version)
        return aliases.promote(shelf, alias, version, force=force)

    def history(self, name: str, alias: str) -> list[Move]:
        """Every move of an alias, the first first."""
        return aliases.history(self.shelf(name), names.check_alias(alias))

    def delete(self, reference: str, *, force: bool = False) -> Deleted:
        """Delete a release for good, also what an alias means if forced; `best` moves on."""
        self._trusted()
        asked = names.parse(reference)
        if asked.version is None:
            raise ReleaseError(f"{reference!r} names no version: expected NAME@vN, as in pets@v1")
        held = maintenance.delete(self.shelf(asked.name), asked.version, force=force)
        moved = aliases.update_best(shelves.list_model(self.uri, asked.name))
        left = [alias for alias in held if not (alias == BEST and moved)]
        return Deleted(left, moved)

    def gc(self, lease_s: float = STALE_AFTER_S) -> GcResult:
        """Finish what dead publishers claimed, and remove leftovers older than the lease."""
        self._trusted()
        done = GcResult()
        for name in self.models():
            maintenance.collect(shelves.list_model(self.uri, name), lease_s, done)
            _settle_best(
                shelves.list_model(self.uri, name)
            )  # who published or deleted may have died
        maintenance.collect_probes(self.uri, lease_s, done)
        maintenance.collect_uploads(self.uri, lease_s, done)
        return done

    def _trusted(self) -> None:
        conditional.require_conditional_writes(
            self.uri, "releases", single_writer=self.single_writer
        )


def _settle_best(shelf: ModelFolder) -> None:
    """What is published or collected is so, whatever became of the alias."""
    try:
        aliases.update_best(shelf)
    except ReleaseError as error:
        logger.warning("'best' stays: %s", error)


def record_files(**records: Any) -> dict[str, bytes]:
    """`name=dataclass or dict` → `{'name.json': …}`."""
    return {
        f"{name}.json": json.dumps(
            value if isinstance(value, dict) else asdict(value), indent=1, ensure_ascii=False
        ).encode()
        for name, value in records.items()
    }
