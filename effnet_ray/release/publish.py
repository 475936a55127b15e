"""Publishes a release: write the files, claim the version number, then write release.json.

1. All files are written to a folder below `staging/`. The folder's name is a hash of the files'
   digests, so two different releases never share one.
2. The version number is claimed with a create-only write of `claims/vNNNN.json`, which is the
   complete future release.json. From then on the bytes of that version are fixed.
3. The files are copied to `vNNNN/`, and release.json is written there, create-only.

Any process that writes into a version's folder writes exactly the bytes that the claim lists, so
a late or repeated write does no harm. After an interrupted publish (after step 2), the
next publisher completes its release before claiming another number; version numbers therefore
have no gaps.

No result depends on a clock; waiting only saves double work.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, ReleaseError, StorageError
from effnet_ray.release.model_folder import ModelFolder, list_model
from effnet_ray.release_format import layout
from effnet_ray.release_format.record import check_record, is_release, record_uri
from effnet_ray.storage import checksummed_json
from effnet_ray.train.metric_definitions import EVAL_IMAGES, EVAL_TOP1, eval_scores

CLAIM_WAIT_S = 2.0
"""How long a publisher waits for another one's claimed release before it completes it: enough to
copy a B0's 20 MB at 10 MB/s. Chosen, not measured: too short only means that both copy."""
POLL_S = 0.1
"""Pause between two looks at a claimed release: short against CLAIM_WAIT_S."""
NO_FILES: Mapping[str, bytes] = MappingProxyType({})


def publish(
    store: str, name: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]
) -> int:
    """Publish the files as the next version of `name`; return its number.

    If the same weights of the same run are published already, return that version's number.
    """
    content = record_content(files, provenance)
    staged = False
    while True:
        folder = list_model(store, name)
        existing = _find_claimed(folder, content)
        if existing:
            if complete_claim(folder, existing, files) and not _is_deleted(folder, existing):
                return existing
            continue  # an interrupted publish that nobody can complete: use another number
        for earlier in folder.unfinished:
            _wait_then_complete(folder, earlier)
        if not staged:
            write_files(staging_uri(folder, content), files)
            staged = True
        version = folder.next
        claim = checksummed_json.seal(
            {"name": name, "version": version, "published": now(), **content}
        )
        try:
            storage.write_bytes(folder.claim_uri(version), claim, exclusive=True)
        except AlreadyExistsError:
            continue  # another publisher claimed the number first
        write_release(folder, version, files)
        if not _is_deleted(folder, version):
            return version


def write_unpublished(uri: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]) -> None:
    """Write a release folder outside of any store, so that it can be loaded before publishing."""
    write_files(uri, files)
    record = checksummed_json.seal({"published": now(), **record_content(files, provenance)})
    storage.write_bytes(record_uri(uri), record)


def find_published(folder: ModelFolder, run: str, weights_sha256: str = "") -> int | None:
    """The complete version of this run with these weights; with any weights by default."""
    for version in folder.versions:
        with suppress(ReleaseError):  # damaged: `models.py verify` reports it
            record = folder.record(version)
            weights = record["files"].get(layout.WEIGHTS)
            if record.get("run") == run and weights_sha256 in ("", weights):
                return version
    return None


def now() -> str:
    """The current time as ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record_content(files: Mapping[str, bytes], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of release.json except name, version and time."""
    ordered = sorted(files.items())
    content = {
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in ordered},
        "sizes": {file: len(data) for file, data in ordered},
        **_scores(files),
    }
    reserved = {*content, "name", "version", "published", checksummed_json.CHECKSUM}
    extra = {key: value for key, value in provenance.items() if key not in reserved}
    return check_record(content | extra, "the release to publish")


def _scores(files: Mapping[str, bytes]) -> dict[str, float | None]:
    """The scores of the best epoch in metrics.json, and the number of eval images, which
    release.json repeats.

    If metrics.json has no best epoch, eval_top1 is None.
    """
    metrics = checksummed_json.parse(files.get(layout.METRICS, b"{}"), layout.METRICS)
    best = metrics.get("best")
    scores = eval_scores(best) if isinstance(best, dict) else {}
    valid = {
        name: score
        for name, score in scores.items()
        if isinstance(score, int | float) and 0 <= score <= 1
    }
    images = best.get(EVAL_IMAGES) if isinstance(best, dict) else None
    counted = {EVAL_IMAGES: images} if type(images) is int and images > 0 else {}
    return {EVAL_TOP1.key: None, **valid, **counted}


def _find_claimed(folder: ModelFolder, content: Mapping[str, Any]) -> int | None:
    """The version, complete or not, that has the same weights of the same run."""
    for version in sorted((folder.claimed | folder.recorded) - folder.deleted):
        try:
            record = _read_claim(folder, version)
        except ReleaseError:
            continue  # damaged: `models.py verify` reports it
        if _identity(record) == _identity(content):
            return version
    return None


def _identity(record: Mapping[str, Any]) -> object:
    files = record["files"]
    return record.get("run"), files.get(layout.WEIGHTS, files)


def _read_claim(folder: ModelFolder, version: int) -> dict[str, Any]:
    """A version's claim, or its release.json if the claim is gone. Raises ReleaseError."""
    if version not in folder.claimed:
        return folder.record(version)
    uri = folder.claim_uri(version)
    return check_record(checksummed_json.read(uri), uri)


def staging_uri(folder: ModelFolder, record: Mapping[str, Any]) -> str:
    """URI of the staging folder of the files that the record lists."""
    key = repr((record.get("run"), sorted(record["files"].items())))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return storage.join(folder.uri, layout.STAGING, digest)


def write_files(uri: str, files: Mapping[str, bytes]) -> None:
    """Write the files of a release to a folder."""
    for file, data in sorted(files.items()):
        storage.write_bytes(storage.join(uri, file), data)


def _is_deleted(folder: ModelFolder, version: int) -> bool:
    """Whether the version has a tombstone by now."""
    return storage.exists(folder.tombstone_uri(version))


def _wait_then_complete(folder: ModelFolder, version: int) -> None:
    """Give the version's publisher CLAIM_WAIT_S to finish, then complete it in its place."""
    until = time.monotonic() + CLAIM_WAIT_S
    while time.monotonic() < until:
        if is_release(folder.release(version).uri):
            return
        time.sleep(POLL_S)
    complete_claim(folder, version)


def complete_claim(
    folder: ModelFolder, version: int, files: Mapping[str, bytes] = NO_FILES
) -> bool:
    """Complete a claimed version; if that is impossible, write its tombstone and return False.

    Raises StorageError.
    """
    try:
        write_release(folder, version, files)
    except ReleaseError:  # the claim or the staged files are damaged, and `files` do not match
        if is_release(folder.release(version).uri):
            return True  # another process completed it in the meantime
        write_tombstone(folder, version, "abandoned")
        return False
    return True


def write_release(
    folder: ModelFolder, version: int, files: Mapping[str, bytes] = NO_FILES
) -> None:
    """Write a claimed version's files, then its release.json.

    Each file comes from `files` if it is the claimed one there, else from the staging folder. A
    release that has only lost its release.json gets it back. Raises ReleaseError if the claim is
    damaged, or a file cannot be found as it was claimed.
    """
    uri = folder.release(version).uri
    claim_uri = folder.claim_uri(version)
    claim = checksummed_json.read_sealed(claim_uri)
    record = check_record(checksummed_json.unseal(claim, claim_uri), claim_uri)
    staging = staging_uri(folder, record)
    if not is_release(uri):
        try:
            for file in record["files"]:
                data = _claimed_file(file, record, files, [staging, uri])
                storage.write_bytes(storage.join(uri, file), data)
        except ReleaseError:
            # The staging folder is deleted after release.json is written: if that is there now,
            # another process has completed the release.
            if not is_release(uri):
                raise
        with suppress(AlreadyExistsError):
            storage.write_bytes(record_uri(uri), claim, exclusive=True)
    with suppress(StorageError):  # two processes may delete it at once; `gc` removes the rest
        storage.delete(staging)


def _claimed_file(
    file: str, record: Mapping[str, Any], files: Mapping[str, bytes], folders: Sequence[str]
) -> bytes:
    """The file that the record lists: from `files`, else from the first folder that has it.

    Raises ReleaseError.
    """
    data = files.get(file)
    if data is not None and hashlib.sha256(data).hexdigest() == record["files"][file]:
        return data
    *others, last = folders
    for folder in others:
        with suppress(ReleaseError):
            return checksummed_json.read_file(folder, file, record)
    return checksummed_json.read_file(last, file, record)


def write_tombstone(folder: ModelFolder, version: int, reason: str) -> None:
    """Mark the version as deleted for good."""
    tombstone = checksummed_json.seal({"version": version, "why": reason, "when": now()})
    with suppress(AlreadyExistsError):
        storage.write_bytes(folder.tombstone_uri(version), tombstone, exclusive=True)
