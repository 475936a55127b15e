"""All that storage knows of a run that became a release: for trackers that missed some of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from effnet_ray.errors import ReleaseError
from effnet_ray.release import aliases, model_folder as shelves
from effnet_ray.release.layout import METRICS
from effnet_ray.release.names import BEST, Release
from effnet_ray.release.record import read_record
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
    """Of release.json, which vouches for every file of the release."""
    best: bool
    """Whether the store's `best` means this release."""


def read(release: Release) -> RunHistory:
    """Raises ReleaseError or StorageError where a part of it is gone."""
    released = read_record(release.uri)
    run_uri = released["run"]
    run = run_record.load(run_uri)
    if run is None:
        raise ReleaseError(f"{run_uri} has no {run_record.RUN}: restore it")
    metrics = checksummed_json.parse(
        checksummed_json.read_file(release.uri, METRICS, released), METRICS
    )
    return RunHistory(
        run=run,
        run_uri=run_uri,
        history=[from_dict(EpochReport, report) for report in metrics["history"]],
        release=release,
        sha256=released["sha256"],
        best=_is_best(release),
    )


def _is_best(release: Release) -> bool:
    store = release.uri.rpartition(f"/{release.name}/")[0]
    shelf = shelves.list_model(store, release.name)
    with suppress(ReleaseError):  # damaged, or what it means was deleted
        return BEST in shelf.aliases and aliases.current(shelf, BEST).version == release.version
    return False
