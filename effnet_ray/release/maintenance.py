"""Deleting versions, for good, and collecting what dead publishers left."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from effnet_ray import storage
from effnet_ray.errors import OutageError, ReleaseError, StorageError
from effnet_ray.release import aliases, publish
from effnet_ray.release.model_folder import STAGING, ModelFolder
from effnet_ray.release.names import NAME
from effnet_ray.storage import checksummed_json, conditional, multipart as uploads
from effnet_ray.storage.local import PARTIAL

OURS = re.compile(rf"{NAME.pattern}/(v\d{{4,9}}|{STAGING}/[0-9a-f]{{16}})/{NAME.pattern}")
"""Paths in a store that publishers upload to."""
STALE_AFTER_S = 24 * 3600.0
"""What is older than this belongs to nobody who is still at work."""


@dataclass(slots=True)
class GcResult:
    """What `collect` did."""

    finished: list[str] = field(default_factory=list)
    """Releases whose publisher had died."""
    buried: list[str] = field(default_factory=list)
    """Versions that nobody can finish."""
    removed: list[str] = field(default_factory=list)
    """URIs of leftovers."""
    uploads: int = 0
    """Uploads in parts that were never finished, aborted."""
    unlisted: str = ""
    """Why such uploads could not be looked for; empty where they could."""


def delete(shelf: ModelFolder, version: int, *, force: bool) -> list[str]:
    """Delete a version: tombstone first, then the files; the aliases that still mean it.

    One that is deleted already is cleared of what is left. Raises ReleaseError where it was
    never there, or an alias means it, unless forced.
    """
    again = version in shelf.buried
    if not again:
        shelf.existing(version)
    held = [name for name in shelf.aliases if _means(shelf, name) == version]
    if held and not (force or again):
        raise ReleaseError(
            f"{shelf.name}@v{version} is still meant by {' and '.join(map(repr, held))}: promote "
            "another version first, or say --force"
        )
    publish.write_tombstone(shelf, version, "deleted")
    storage.delete(shelf.release(version).uri)
    return held


def _means(shelf: ModelFolder, alias: str) -> int | None:
    moves = aliases.history(shelf, alias)
    return moves[-1].version if moves else None


def collect(shelf: ModelFolder, lease_s: float, into: GcResult) -> None:
    """Finish or bury abandoned claims and remove leftovers, all of them older than the lease."""
    before = time.time() - lease_s
    waiting = shelf.claimed - shelf.recorded - shelf.buried
    for version in sorted(waiting):
        claim = shelf.claim(version).removeprefix(f"{shelf.uri}/")
        if shelf.files[claim].modified < before:
            done = publish.wait_then_complete(shelf, version)
            (into.finished if done else into.buried).append(shelf.release(version).reference)
    for folder in _leftovers(shelf, before):
        storage.delete(storage.join(shelf.uri, folder))
        into.removed.append(storage.join(shelf.uri, folder))


def _leftovers(shelf: ModelFolder, before: float) -> Iterator[str]:
    """Folders and files, below the model's, that no reader sees and nobody works with."""
    grouped: dict[str, float] = {}
    for path, entry in shelf.files.items():
        unit = _unit(shelf, path)
        if unit:
            grouped[unit] = max(entry.modified, grouped.get(unit, 0))
    yield from (unit for unit, newest in sorted(grouped.items()) if newest < before)


def _unit(shelf: ModelFolder, path: str) -> str:
    """What of a path is collected as one; empty where nothing is.

    A folder whose number comes next is left: its publisher may come at this moment, and writes
    over whatever is there.
    """
    if _partial(path):
        return path
    if match := re.match(rf"{STAGING}/[0-9a-f]{{16}}(?=/)", path):
        return match[0]
    match = re.match(r"v(\d{4,9})(?=/)", path)
    if not match:
        return ""
    version = int(match[1])
    gone = version in shelf.buried
    unclaimed = version not in shelf.claimed | shelf.recorded and version > shelf.next
    return match[0] if gone or unclaimed else ""


def _partial(path: str) -> bool:
    """Whether it is what a killed writer left on a disk."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(PARTIAL)


def collect_probes(store: str, lease_s: float, into: GcResult) -> None:
    """Remove what killed probes left in the store's own folder."""
    before = time.time() - lease_s
    for name in storage.folders(store):
        uri = storage.join(store, name)
        if name.startswith(conditional.PROBE_PREFIX) and _newest(uri) < before:
            storage.delete(uri)
            into.removed.append(uri)


def collect_uploads(store: str, lease_s: float, into: GcResult) -> None:
    """Abort what killed publishers began to upload in parts: it is billed, and in no listing.

    Raises StorageError where the storage does not answer; one that keeps no account of uploads, or
    shows it to others only, is told.
    """
    try:
        for upload in uploads.list_unfinished_uploads(store):
            if OURS.fullmatch(upload.path) and upload.started < time.time() - lease_s:
                uploads.abort(store, upload)
                into.uploads += 1
    except OutageError:
        raise
    except StorageError as error:
        into.unlisted = str(error)


def _newest(uri: str) -> float:
    found = storage.entries(uri, hidden=True).values()
    return max((entry.modified for entry in found), default=0)


def verify(shelf: ModelFolder, version: int) -> None:
    """Hold a release's files against its record, and that against its claim.

    Raises ReleaseError. `aliases.verify` holds aliases against releases.
    """
    uri = shelf.existing(version).uri
    shelf.record(version)
    record = checksummed_json.verify(uri)
    if version in shelf.claimed and checksummed_json.read_record(shelf.claim(version)) != record:
        raise ReleaseError(
            f"the {checksummed_json.RECORD} of {uri} is not what was claimed: restore it"
        )
