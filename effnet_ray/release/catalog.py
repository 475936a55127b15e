"""What there is in a store, told: every model, its versions and its aliases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray.errors import ReleaseError
from effnet_ray.release import aliases
from effnet_ray.release.aliases import Move
from effnet_ray.release.model_folder import ModelFolder
from effnet_ray.release.store import ModelStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A release in a list. Of one whose record is damaged only the place is known."""

    reference: str
    uri: str
    eval_top1: float | None = None
    eval_map: float | None = None
    """Mean average precision, where images may have several classes."""
    variant: str = ""
    published: str = ""
    """ISO 8601, UTC."""
    size: int = 0
    """Bytes of all its files."""
    damaged: str = ""
    """What is wrong with its record; its files are looked at by `verify` alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model in a list."""

    name: str
    versions: tuple[Version, ...]
    aliases: Mapping[str, int | None]
    """The version each means; None where its history is damaged."""


def catalog(store: ModelStore) -> list[Model]:
    """All models that have a version, by name. Raises StorageError."""
    told = [model(store.shelf(name)) for name in store.models()]
    return [each for each in told if each.versions]


def model(shelf: ModelFolder) -> Model:
    """One model."""
    return Model(
        name=shelf.name,
        versions=tuple(_version(shelf, version) for version in shelf.versions),
        aliases={alias: _means(shelf, alias) for alias in shelf.aliases},
    )


def histories(shelf: ModelFolder) -> dict[str, list[Move]]:
    """Every alias's moves. Raises ReleaseError where a history is damaged."""
    return {alias: aliases.history(shelf, alias) for alias in shelf.aliases}


def _version(shelf: ModelFolder, version: int) -> Version:
    release = shelf.release(version)
    try:
        record: dict[str, Any] = shelf.record(version)
    except ReleaseError as error:
        return Version(reference=release.reference, uri=release.uri, damaged=str(error))
    return Version(
        reference=release.reference,
        uri=release.uri,
        eval_top1=record.get("eval_top1"),
        eval_map=record.get("eval_map"),
        variant=str(record.get("variant", "")),
        published=str(record.get("published", "")),
        size=sum(record["sizes"].values()),
    )


def _means(shelf: ModelFolder, alias: str) -> int | None:
    try:
        return aliases.history(shelf, alias)[-1].version
    except (ReleaseError, IndexError):
        return None
