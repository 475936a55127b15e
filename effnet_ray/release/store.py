"""ModelStore: immutable, versioned releases in a local folder or a bucket, and their aliases.

`layout` describes the files. A release is either complete or does not exist, and is never
overwritten: a folder without release.json is not a release.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError, StorageError
from effnet_ray.release import aliases, maintenance, publish
from effnet_ray.release.alias_move import Move
from effnet_ray.release.maintenance import STALE_AFTER_S, GcResult
from effnet_ray.release.model_folder import ModelFolder, list_model
from effnet_ray.release.names import (
    BEST,
    Release,
    check_alias_name,
    check_model_name,
    parse_reference,
)
from effnet_ray.storage import conditional
from effnet_ray.storage.names import NAME

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What a deletion did to aliases."""

    aliases: list[str]
    """Aliases that still point to the deleted version."""
    best: Move | None
    """The move of `best` to the best remaining release; None if it did not move."""


@dataclass(frozen=True, slots=True)
class ModelStore:
    """A model store: a local folder or an s3:// prefix."""

    uri: str
    single_writer: bool = False
    """The caller guarantees that no two processes write to the store at once."""

    def __post_init__(self) -> None:
        """Raise StorageError if the URI is a local file."""
        if storage.local_entry(self.uri):
            raise StorageError(f"--store {self.uri} is a file: choose a folder")

    def publish(
        self, name: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]
    ) -> Release:
        """Publish `files` (name → content) as the next version of `name`, and update `best`.

        If the same weights of the same run are published already, return that release: a driver
        that died can simply publish again. Raises StorageError if the store's server does not
        support conditional writes.
        """
        self._require_conditional_writes()
        version = publish.publish(self.uri, check_model_name(name), files, provenance)
        folder = list_model(self.uri, name)
        _try_update_best(folder)
        return folder.release(version)

    def find_published(self, name: str, *, run: str, weights_sha256: str = "") -> Release | None:
        """The complete release of this run with these weights; with any weights by default."""
        self._require_conditional_writes()
        folder = list_model(self.uri, check_model_name(name))
        version = publish.find_published(folder, run, weights_sha256)
        if version is None:
            return None
        _try_update_best(folder)  # its publisher may have died before that
        return folder.release(version)

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return [name for name in storage.folders(self.uri) if NAME.fullmatch(name)]

    def model_folder(self, name: str) -> ModelFolder:
        """List a model's folder. Raises ReleaseError if it is empty."""
        folder = list_model(self.uri, check_model_name(name))
        if not folder.files:
            models = ", ".join(self.models())
            content = (
                f"; it has: {models}"
                if models
                else ", which is empty: check --store, or publish one with effnet-ray finetune"
            )
            raise ReleaseError(f"there is no model {name} in {self.uri}{content}")
        return folder

    def versions(self, name: str) -> list[int]:
        """Numbers of a model's complete versions, ascending."""
        return list_model(self.uri, check_model_name(name)).versions

    def find(self, reference: str) -> Release:
        """The release called `name@vN` or `name@alias`, after verifying its files.

        Raises ReleaseError if it does not exist (listing what does) or is damaged.
        """
        folder, version = self.resolve(reference)
        maintenance.verify(folder, version)
        return folder.release(version)

    def resolve(self, reference: str) -> tuple[ModelFolder, int]:
        """The model's folder and version number of a reference; files are not verified.

        Raises ReleaseError if the release does not exist.
        """
        parsed = parse_reference(reference)
        folder = self.model_folder(parsed.name)
        if parsed.alias:
            return folder, aliases.current(folder, parsed.alias).version
        if parsed.version is None:
            raise ReleaseError(
                f"{reference!r} has no version: expected NAME@vN or NAME@ALIAS; "
                f"{self.uri} has: {folder.describe_contents()}"
            )
        return folder, folder.require(parsed.version).version

    def promote(
        self, reference: str, alias: str, *, force: bool = False, replaces: int | None = None
    ) -> Move:
        """Point `alias` to a release.

        `replaces`: the version that the release was compared with, to which the alias must still
        point, or 0 if it must have none; then scores are not compared again. Raises ReleaseError
        if the release is damaged; unless forced, also if it is worse than the alias's current one.
        """
        folder, version = self.check_promotable(reference, alias)
        return aliases.promote(folder, alias, version, force=force, replaces=replaces)

    def check_promotable(self, reference: str, alias: str) -> tuple[ModelFolder, int]:
        """The release's model and version. Raises ReleaseError if it is damaged or not there,
        StorageError if aliases cannot be moved in this store."""
        self._require_conditional_writes()
        check_alias_name(alias)
        folder, version = self.resolve(reference)
        maintenance.verify(folder, version)
        return folder, version

    def history(self, name: str, alias: str) -> list[Move]:
        """All moves of an alias, oldest first."""
        return aliases.history(self.model_folder(name), check_alias_name(alias))

    def delete(self, reference: str, *, force: bool = False) -> DeleteResult:
        """Delete a release for good, and move `best` to the best remaining one if necessary.

        Raises ReleaseError if an alias points to the release, unless forced.
        """
        self._require_conditional_writes()
        parsed = parse_reference(reference)
        if parsed.version is None:
            raise ReleaseError(f"{reference!r} has no version: expected NAME@vN, as in pets@v1")
        folder = self.model_folder(parsed.name)
        referring = maintenance.delete(folder, parsed.version, force=force)
        move = aliases.update_best(list_model(self.uri, parsed.name))
        dangling = [alias for alias in referring if not (alias == BEST and move)]
        return DeleteResult(dangling, move)

    def gc(self, stale_after_s: float = STALE_AFTER_S) -> GcResult:
        """Finish interrupted publishes and delete their stale leftovers."""
        self._require_conditional_writes()
        result = GcResult()
        for name in self.models():
            maintenance.collect_garbage(list_model(self.uri, name), stale_after_s, result)
            # A publish or a deletion may have been interrupted before it updated `best`.
            _try_update_best(list_model(self.uri, name))
        maintenance.collect_probes(self.uri, stale_after_s, result)
        maintenance.collect_uploads(self.uri, stale_after_s, result)
        return result

    def _require_conditional_writes(self) -> None:
        conditional.require_conditional_writes(self.uri, single_writer=self.single_writer)


def release_uri(model: str, store: str) -> str:
    """The folder's URI of `NAME@vN`, `NAME@ALIAS` or a URI. Raises ReleaseError."""
    if "/" in model:
        uri = storage.absolute(model)
        if not storage.exists(uri):
            raise ReleaseError(f"{model} does not exist: check the path, or pass NAME@vN")
        return uri
    folder, version = ModelStore(storage.absolute(store)).resolve(model)
    return folder.release(version).uri


def _try_update_best(folder: ModelFolder) -> None:
    """Update `best`, or log why it cannot be updated: publishing succeeds either way."""
    try:
        aliases.update_best(folder)
    except ReleaseError as error:
        logger.warning("alias 'best' not updated: %s", error)
