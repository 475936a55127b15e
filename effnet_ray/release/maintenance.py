"""Deleting releases, verifying them, and deleting the leftovers of interrupted publishes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from effnet_ray import storage
from effnet_ray.errors import OutageError, ReleaseError, StorageError
from effnet_ray.release import aliases, publish
from effnet_ray.release.model_folder import ModelFolder
from effnet_ray.release_format import layout
from effnet_ray.release_format.record import record_uri, verify_files
from effnet_ray.storage import checksummed_json, conditional, multipart
from effnet_ray.storage.checksummed_json import RESTORE
from effnet_ray.storage.local import PARTIAL

STALE_AFTER_S = 24 * 3600.0
"""Files that have not changed for longer belong to an interrupted publish: no publish takes
that long."""


@dataclass(slots=True)
class GcResult:
    """What a garbage collection did. The fields are keys of the job's JSON."""

    finished: list[str] = field(default_factory=list)
    """Releases completed after their publisher had died."""
    buried: list[str] = field(default_factory=list)
    """Claimed versions deleted because they could not be completed: they have a tombstone."""
    removed: list[str] = field(default_factory=list)
    """URIs of deleted leftovers."""
    uploads: int = 0
    """Number of aborted multipart uploads."""
    unlisted: str = ""
    """Why multipart uploads could not be listed; empty if they could."""


def delete(folder: ModelFolder, version: int, *, force: bool) -> list[str]:
    """Delete a version, its tombstone first; return the aliases that still point to it.

    A version that is deleted already loses the files that are left. Raises ReleaseError if it
    never existed; unless forced, also if an alias points to it.
    """
    repeated = version in folder.deleted
    if not repeated:
        folder.require(version)
    referring = [name for name in folder.aliases if aliases.target(folder, name) == version]
    if referring and not (force or repeated):
        noun = "alias" if len(referring) == 1 else "aliases"
        raise ReleaseError(
            f"{folder.name}@v{version} is still referenced by {noun} "
            f"{' and '.join(map(repr, referring))}: promote another version first, or pass --force"
        )
    publish.write_tombstone(folder, version, "deleted")
    storage.delete(folder.release(version).uri)
    return referring


def collect_garbage(folder: ModelFolder, stale_after_s: float, result: GcResult) -> None:
    """Complete stale claims, or write their tombstones, and delete stale leftovers of a model."""
    before = time.time() - stale_after_s
    for version in folder.unfinished:
        if folder.files[layout.claim_path(version)].modified < before:
            completed = publish.complete_claim(folder, version)
            done = result.finished if completed else result.buried
            done.append(folder.release(version).reference)
    for path in _leftovers(folder, before):
        uri = storage.join(folder.uri, path)
        storage.delete(uri)
        result.removed.append(uri)


def _leftovers(folder: ModelFolder, before: float) -> Iterator[str]:
    """Paths of leftover files and folders, below the model's, of which no file is newer."""
    newest: dict[str, float] = {}
    for path, entry in folder.files.items():
        leftover = _leftover(folder, path)
        if leftover:
            newest[leftover] = max(entry.modified, newest.get(leftover, 0))
    yield from (path for path, modified in sorted(newest.items()) if modified < before)


def _leftover(folder: ModelFolder, path: str) -> str:
    """The leftover file or folder to which a path belongs; empty if it is not a leftover.

    The folder of the next free number is none: a publisher may claim that number at any moment,
    and overwrites what is there.
    """
    if _is_partial(path):
        return path
    if match := layout.IN_STAGING_FOLDER.match(path):
        return match[0]
    match = layout.IN_VERSION_FOLDER.match(path)
    if not match:
        return ""
    version = int(match[1])
    unclaimed = version not in folder.claimed | folder.recorded and version > folder.next
    return match[0] if version in folder.deleted or unclaimed else ""


def _is_partial(path: str) -> bool:
    """Whether the file is the temporary file of a killed writer."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(PARTIAL)


def collect_probes(store: str, stale_after_s: float, result: GcResult) -> None:
    """Delete stale probes of conditional writes from the store's folder."""
    before = time.time() - stale_after_s
    for name in storage.folders(store):
        uri = storage.join(store, name)
        if name.startswith(conditional.PROBE_PREFIX) and _last_modified(uri) < before:
            storage.delete(uri)
            result.removed.append(uri)


def collect_uploads(store: str, stale_after_s: float, result: GcResult) -> None:
    """Abort stale multipart uploads of interrupted publishes.

    They cost money and appear in no listing.

    If the server cannot list uploads, or denies it, record why in the result. Raises StorageError
    if the storage is unreachable.
    """
    before = time.time() - stale_after_s
    try:
        for upload in multipart.list_unfinished_uploads(store):
            if layout.UPLOAD_PATH.fullmatch(upload.path) and upload.started < before:
                multipart.abort(store, upload)
                result.uploads += 1
    except OutageError:
        raise
    except StorageError as error:
        result.unlisted = str(error)


def _last_modified(uri: str) -> float:
    """Time of the last write below the URI, hidden files included; 0 if there is none."""
    entries = storage.entries(uri, hidden=True).values()
    return max((entry.modified for entry in entries), default=0)


def verify(folder: ModelFolder, version: int) -> None:
    """Check a release's files against its record, and the record against its claim.

    Raises ReleaseError.
    """
    uri = folder.require(version).uri
    folder.record(version)
    record = verify_files(uri)
    if version in folder.claimed and checksummed_json.read(folder.claim_uri(version)) != record:
        raise ReleaseError(
            f"{record_uri(uri)} differs from {folder.claim_uri(version)}: {RESTORE}"
        )
