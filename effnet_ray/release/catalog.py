"""Summaries of the models in a store: their versions and aliases."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray.errors import ReleaseError
from effnet_ray.release import aliases
from effnet_ray.release.model_folder import ModelFolder
from effnet_ray.release.store import ModelStore
from effnet_ray.train.metric_definitions import EVAL_IMAGES, EVAL_MAP, EVAL_TOP1, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """Summary of a release. If its record is damaged, only reference and URI are known."""

    reference: str
    uri: str
    eval_top1: float | None = None
    eval_map: float | None = None
    """Mean average precision of a multi-label release."""
    eval_images: int = 0
    """0 if the record is older than this number."""
    variant: str = ""
    published: str = ""
    """ISO 8601, UTC."""
    size: int = 0
    """Bytes of all its files."""
    damaged: str = ""
    """What is wrong with its record. Only `models verify` checks its files."""

    @property
    def score(self) -> Score | None:
        """The score of the release."""
        return Score.of(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Summary of a model."""

    name: str
    versions: tuple[Version, ...]
    aliases: Mapping[str, int | None]
    """Alias → the version it points to; None if its history is damaged."""

    def as_json(self) -> dict[str, Any]:
        """Its form in JSON; versions without a number of eval images lack the key."""
        values = asdict(self)
        for version in values["versions"]:
            if not version["eval_images"]:
                del version["eval_images"]
        return values


def list_models(store: ModelStore) -> list[Model]:
    """Summaries of all models that have a version, by name. Raises StorageError."""
    models = [describe_model(store.model_folder(name)) for name in store.models()]
    return [model for model in models if model.versions]


def describe_model(folder: ModelFolder) -> Model:
    """Summary of one model."""
    return Model(
        name=folder.name,
        versions=tuple(_describe_version(folder, version) for version in folder.versions),
        aliases={alias: _target(folder, alias) for alias in folder.aliases},
    )


def _describe_version(folder: ModelFolder, version: int) -> Version:
    release = folder.release(version)
    try:
        record = folder.record(version)
    except ReleaseError as error:
        return Version(reference=release.reference, uri=release.uri, damaged=str(error))
    return Version(
        reference=release.reference,
        uri=release.uri,
        eval_top1=record.get(EVAL_TOP1.key),
        eval_map=record.get(EVAL_MAP.key),
        eval_images=record.get(EVAL_IMAGES, 0),
        variant=str(record.get("variant", "")),
        published=str(record.get("published", "")),
        size=sum(record["sizes"].values()),
    )


def _target(folder: ModelFolder, alias: str) -> int | None:
    try:
        return aliases.target(folder, alias)
    except ReleaseError:
        return None
