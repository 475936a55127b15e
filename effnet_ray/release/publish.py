"""Publishing: content first, the number second, the record last.

1. All files are written under `staging/`, in a folder that is named by what it holds.
2. The number is claimed: `claims/vNNNN.json`, create-only, is the whole release.json. From then on
   the bytes of that version are decided.
3. The files are copied to `vNNNN/`, and release.json is written there, create-only.

Whoever writes into a version's folder writes the bytes that its claim names, so nobody can do harm
there, late or twice; and what a dead publisher left after step 2 is finished by the next one, who
takes a number only when all before it are finished. So versions are dense. No clock decides.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, ReleaseError, StorageError
from effnet_ray.release import model_folder as shelves
from effnet_ray.release.model_folder import ModelFolder
from effnet_ray.storage import checksummed_json

WEIGHTS = "model.safetensors"
SCORES = ("eval_top1", "eval_map")
"""What a release was judged by: by the second, where images may have several classes."""
HELPED_AFTER_S = 2.0
"""How long a claim's owner is left alone with it: to save work, nothing hangs on it."""
POLL_S = 0.1
NOTHING: Mapping[str, bytes] = {}
"""Files of whoever has none in memory."""


def publish(
    store: str, name: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]
) -> int:
    """Release `files`; the version's number. What the same run released already is found."""
    content = _content(files, provenance)
    staged = False
    while True:
        shelf = shelves.list_model(store, name)
        found = _published(shelf, content)
        if found:
            if wait_then_complete(shelf, found, files) and not storage.exists(
                shelf.tombstone(found)
            ):
                return found
            continue  # its publisher died, and it cannot be finished: under another number
        for earlier in sorted(shelf.claimed - shelf.recorded - shelf.buried):
            _settle(shelf, earlier)
        if not staged:
            _write(_staging(shelf, content), files)
            staged = True
        number = shelf.next
        record = checksummed_json.seal(
            {"name": name, "version": number, "published": now(), **content}
        )
        try:
            storage.write_bytes(shelf.claim(number), record, exclusive=True)
        except AlreadyExistsError:
            continue  # another publisher took the number
        finish(shelf, number, files)
        if not storage.exists(shelf.tombstone(number)):
            return number


def write_unpublished(uri: str, files: Mapping[str, bytes], provenance: Mapping[str, Any]) -> None:
    """Write a folder that is a release but for being in no store: of a model not yet published."""
    _write(uri, files)
    record = checksummed_json.seal({"published": now(), **_content(files, provenance)})
    storage.write_bytes(storage.join(uri, checksummed_json.RECORD), record)


def released(shelf: ModelFolder, run: str, weights_sha256: str = "") -> int | None:
    """The complete version that has these weights of this run, whichever if none are given."""
    for version in shelf.versions:
        with suppress(ReleaseError):  # damaged: `verify` tells
            record = shelf.record(version)
            if record.get("run") == run and weights_sha256 in ("", record["files"].get(WEIGHTS)):
                return version
    return None


def now() -> str:
    """ISO 8601, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _content(files: Mapping[str, bytes], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What release.json says besides name, number and time."""
    ordered = sorted(files.items())
    own = {
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in ordered},
        "sizes": {file: len(data) for file, data in ordered},
        **_scores(files),
    }
    ours = {*own, "name", "version", "published", "sha256"}
    content = {**own, **{key: value for key, value in provenance.items() if key not in ours}}
    return checksummed_json.check(content, "what is to be released")


def _scores(files: Mapping[str, bytes]) -> dict[str, float | None]:
    """Of the best epoch in metrics.json; None where it says none."""
    told = checksummed_json.parse(files.get("metrics.json", b"{}"), "metrics.json").get("best")
    best = told if isinstance(told, dict) else {}
    found = {
        name: value if isinstance(value, int | float) and 0 <= value <= 1 else None
        for name, value in ((name, best.get(name)) for name in SCORES)
    }
    return {name: found[name] for name in SCORES if name == SCORES[0] or found[name] is not None}


def _published(shelf: ModelFolder, content: Mapping[str, Any]) -> int | None:
    """The version that has the same run's same weights already."""
    for version in sorted((shelf.claimed | shelf.recorded) - shelf.buried):
        try:
            record = _claimed(shelf, version)
        except ReleaseError:
            continue  # damaged: `verify` tells
        if _identity(record) == _identity(content):
            return version
    return None


def _identity(record: Mapping[str, Any]) -> object:
    files = record["files"]
    return record.get("run"), files.get(WEIGHTS, files)


def _claimed(shelf: ModelFolder, version: int) -> dict[str, Any]:
    """What a version is or is going to be. Raises ReleaseError where its record is damaged."""
    if version not in shelf.claimed:
        return shelf.record(version)
    uri = shelf.claim(version)
    return checksummed_json.check(checksummed_json.read_record(uri), uri)


def _staging(shelf: ModelFolder, record: Mapping[str, Any]) -> str:
    """URI of the folder for what the record names; two runs never share one."""
    told = repr((record.get("run"), sorted(record["files"].items())))
    token = hashlib.sha256(told.encode()).hexdigest()[:16]
    return storage.join(shelf.uri, shelves.STAGING, token)


def _write(folder: str, files: Mapping[str, bytes]) -> None:
    for file, data in sorted(files.items()):
        storage.write_bytes(storage.join(folder, file), data)


def _settle(shelf: ModelFolder, version: int) -> None:
    """Wait a moment for a claim's owner, then finish its work; bury what cannot be finished."""
    record = storage.join(shelf.release(version).uri, checksummed_json.RECORD)
    until = time.monotonic() + HELPED_AFTER_S
    while time.monotonic() < until:
        if storage.exists(record):
            return
        time.sleep(POLL_S)
    wait_then_complete(shelf, version)


def wait_then_complete(
    shelf: ModelFolder, version: int, files: Mapping[str, bytes] = NOTHING
) -> bool:
    """Finish what is claimed; bury what cannot be finished, False then. Raises StorageError."""
    try:
        finish(shelf, version, files)
    except ReleaseError:  # the claim is damaged, or what was staged, and `files` are others
        if checksummed_json.is_release(shelf.release(version).uri):
            return True  # another has finished it meanwhile
        write_tombstone(shelf, version, "abandoned")
        return False
    return True


def finish(shelf: ModelFolder, version: int, files: Mapping[str, bytes] = NOTHING) -> None:
    """Put a claimed version's files and record in place: from memory, or from where it is staged.

    Of `files` those are used that the claim names; a release that lost its record alone has it
    again. Raises ReleaseError where the claim is damaged, or a file is nowhere as claimed.
    """
    if version in shelf.recorded - shelf.claimed:
        return  # released before there were claims
    uri = shelf.release(version).uri
    data = checksummed_json.read_raw(shelf.claim(version))
    record = checksummed_json.check(checksummed_json.unseal(data, shelf.claim(version)), uri)
    staging = _staging(shelf, record)
    if not checksummed_json.is_release(uri):
        try:
            for file in record["files"]:
                content = _as_claimed(file, record, files, [staging, uri])
                storage.write_bytes(storage.join(uri, file), content)
        except ReleaseError:
            # Staging is deleted after the record is written, so then another has finished it.
            if not checksummed_json.is_release(uri):
                raise
        with suppress(AlreadyExistsError):
            storage.write_bytes(storage.join(uri, checksummed_json.RECORD), data, exclusive=True)
    with suppress(StorageError):  # two may delete it at once; `gc` finds what is left
        storage.delete(staging)


def _as_claimed(
    file: str, record: Mapping[str, Any], files: Mapping[str, bytes], folders: Sequence[str]
) -> bytes:
    """What the record names: from memory if it is that, else from the first folder that has it.

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


def write_tombstone(shelf: ModelFolder, version: int, why: str) -> None:
    """Say for good that there is no such version."""
    told = checksummed_json.seal({"version": version, "why": why, "when": now()})
    with suppress(AlreadyExistsError):
        storage.write_bytes(shelf.tombstone(version), told, exclusive=True)
