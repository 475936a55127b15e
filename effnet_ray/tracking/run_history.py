"""The full history of a released run, read from storage: trackers that missed a part log it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from effnet_ray.errors import ReleaseError
from effnet_ray.release import aliases
from effnet_ray.release.model_folder import list_model
from effnet_ray.release.names import BEST, Release
from effnet_ray.release_format.layout import METRICS
from effnet_ray.release_format.record import read_record
from effnet_ray.schema import from_dict
from effnet_ray.storage import checksummed_json
from effnet_ray.train import run_record
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHistory:
    """A run from its first epoch to its release."""

    run: Run
    run_uri: str
    history: Sequence[EpochReport]
    release: Release
    sha256: str
    """SHA-256 in release.json, which identifies the release."""
    is_best: bool
    """Whether the alias `best` points to this release."""


def read_run_history(release: Release) -> RunHistory:
    """Read the history of a release's run.

    Raises ReleaseError or StorageError if a part of it is missing.
    """
    record = read_record(release.uri)
    run_uri = record["run"]
    run = run_record.load(run_uri)
    if run is None:
        raise ReleaseError(f"{run_uri} has no {run_record.RUN}: restore it from a backup")
    data = checksummed_json.read_file(release.uri, METRICS, record)
    metrics = checksummed_json.parse(data, METRICS)
    return RunHistory(
        run=run,
        run_uri=run_uri,
        history=[from_dict(EpochReport, report) for report in metrics["history"]],
        release=release,
        sha256=record["sha256"],
        is_best=_is_best(release),
    )


def _is_best(release: Release) -> bool:
    store = release.uri.rpartition(f"/{release.name}/")[0]
    folder = list_model(store, release.name)
    with suppress(ReleaseError):  # the history is damaged, or its target was deleted
        return BEST in folder.aliases and aliases.current(folder, BEST).version == release.version
    return False
