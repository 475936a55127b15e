"""Aliases: names such as `best` or `champion` that move from version to version.

`STORE/NAME/aliases/ALIAS.json` holds the whole history of an alias, with its own checksum. Moves
are compare-and-swap writes, so of two concurrent moves none is lost: the second one is appended
to the first.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, ConflictError, RecipeError, ReleaseError
from effnet_ray.release.alias_move import Move
from effnet_ray.release.model_folder import ModelFolder
from effnet_ray.release.names import BEST, Release, check_alias_name
from effnet_ray.release.publish import now
from effnet_ray.release_format import layout
from effnet_ray.schema import from_dict
from effnet_ray.storage import checksummed_json, conditional, local
from effnet_ray.storage.checksummed_json import RESTORE
from effnet_ray.train.metric_definitions import Score, eval_scores

logger = logging.getLogger(__name__)


def history(folder: ModelFolder, alias: str) -> list[Move]:
    """All moves, oldest first; empty if there is no such alias.

    Raises ReleaseError if the history was altered.
    """
    stored = conditional.read(_uri(folder, alias))
    return _parse(folder, alias, stored.data) if stored else []


def histories(folder: ModelFolder) -> dict[str, list[Move]]:
    """The history of every alias. Raises ReleaseError if one was altered."""
    return {alias: history(folder, alias) for alias in folder.aliases}


def target(folder: ModelFolder, alias: str) -> int | None:
    """The version that the alias points to; None if there is no such alias.

    The version may be deleted. Raises ReleaseError if the history was altered.
    """
    moves = history(folder, alias)
    return moves[-1].version if moves else None


def current(folder: ModelFolder, alias: str) -> Release:
    """The release that the alias points to. Raises ReleaseError if there is none."""
    moves = history(folder, alias)
    if not moves:
        raise ReleaseError(
            f"{folder.name}@{alias} is not in {folder.store}; it has: {folder.describe_contents()}"
        )
    return _moved_to(folder, alias, moves[-1])


def verify(folder: ModelFolder, alias: str) -> None:
    """Check an alias's history against itself and against the existing releases.

    Raises ReleaseError if the history was altered, a move is missing from it, a release is not
    the one to which the alias was moved, or its current release is deleted or damaged.
    """
    moves = history(folder, alias)
    for before, move in zip([None, *moves], moves, strict=False):
        if move.previous != (before.version if before else None):
            raise ReleaseError(
                f"{_uri(folder, alias)}: the history is missing an entry before the move to "
                f"v{move.version} at {move.when}: {RESTORE}"
            )
        if move.version in folder.versions:
            _moved_to(folder, alias, move)
    if moves:
        _moved_to(folder, alias, moves[-1])


def _moved_to(folder: ModelFolder, alias: str, move: Move) -> Release:
    """The release to which the alias was moved. Raises ReleaseError if it is gone or replaced."""
    version = move.version
    if version not in folder.versions:
        reason = "was deleted" if version in folder.deleted else "does not exist"
        raise ReleaseError(
            f"{folder.name}@{alias} points to v{version}, which {reason}: point it to another "
            f"version with `effnet-ray models promote`; {folder.store} has: "
            f"{folder.describe_contents()}"
        )
    if folder.record(version)["sha256"] != move.record:
        raise ReleaseError(
            f"{folder.name}@v{version} is not the release that {alias!r} was pointed to (the "
            "SHA-256 of its record differs): restore that version's folder from a backup, or "
            "promote another version"
        )
    return folder.release(version)


def promote(
    folder: ModelFolder,
    alias: str,
    version: int,
    *,
    force: bool = False,
    replaces: int | None = None,
) -> Move:
    """Point the alias to this version; return its newest move.

    `replaces`: the version to which the alias must still point, 0 for none, and whose score is not
    compared: someone has compared the two. Raises ReleaseError if the version does not exist.
    Unless forced, also if its score is worse than that of the alias's current release or cannot be
    compared with it, or if the history was altered. Forced, an altered history is kept under
    another name and a new one is started.
    """
    check_alias_name(alias)
    move = _move(folder, alias, version, force=force, better_only=False, replaces=replaces)
    assert move is not None
    return move


def update_best(folder: ModelFolder) -> Move | None:
    """Move `best` to the best release since its last move, if that one is better.

    All releases published since then are compared, because a publisher may have died before this
    step. Older ones are not, so `best` stays where a person moved it. If the release of `best` was
    deleted, all remaining releases are compared.
    """
    moves = history(folder, BEST)
    target_deleted = bool(moves) and moves[-1].version in folder.deleted
    compared = 0 if target_deleted else max((move.newest for move in moves), default=0)
    scores = _scores_after(folder, compared)
    newest = next((scores[version] for version in sorted(scores, reverse=True)), None)
    reference = newest if target_deleted else moves[-1].score if moves else None
    comparable = {
        version: score.value
        for version, score in scores.items()
        if score is not None and (reference is None or score.metric == reference.metric)
    }
    if not comparable:
        return None
    chosen = max(comparable, key=lambda version: (comparable[version], -version))
    return _move(folder, BEST, chosen, force=False, better_only=True)


def _scores_after(folder: ModelFolder, version: int) -> dict[int, Score | None]:
    """The score of every undamaged release above this version."""
    scores = {}
    for later in (number for number in folder.versions if number > version):
        with suppress(ReleaseError):  # damaged: `models verify` reports it
            scores[later] = Score.of(folder.record(later))
    return scores


def _move(
    folder: ModelFolder,
    alias: str,
    version: int,
    *,
    force: bool,
    better_only: bool,
    replaces: int | None = None,
) -> Move | None:
    """Append a move to the alias's history, by compare-and-swap.

    With `better_only`, return None if the version is not strictly better. `replaces` as in
    `promote`.
    """
    folder.require(version)
    record, uri = folder.record(version), _uri(folder, alias)
    while True:
        stored = conditional.read(uri)
        moves = _parse_or_set_aside(folder, alias, stored.data, force=force) if stored else []
        if moves and moves[-1].version == version:
            return None if better_only else moves[-1]
        if replaces is not None:
            objection = _objection_to_replacing(folder, alias, moves, replaces)
        else:
            objection = _objection(folder, moves, Score.of(record), strictly=better_only)
        if better_only and objection:
            return None
        if objection and (replaces is not None or not force):
            raise ReleaseError(
                f"cannot point {alias!r} to {folder.name}@v{version}: {objection}: choose another "
                "version, or pass --force"
            )
        restarted = stored is not None and not moves
        move = _new_move(folder, moves, version, record, forced=bool(objection) or restarted)
        data = _serialize(folder, alias, [*moves, move])
        try:
            if stored:
                conditional.swap(uri, data, stored.etag)
            else:
                storage.write_bytes(uri, data, exclusive=True)
        except (AlreadyExistsError, ConflictError):
            continue  # another process moved the alias first: compare with its new target
        return move


def _objection_to_replacing(
    folder: ModelFolder, alias: str, moves: Sequence[Move], replaces: int
) -> str:
    """Why the alias does not move, although releases were compared; empty if it does."""
    target = moves[-1].version if moves else 0
    if target and storage.exists(folder.tombstone_uri(target)):
        target = 0
    if target == replaces:
        return ""
    if not replaces:
        return f"{folder.name}@{alias} points to v{target} now, and the two were not compared"
    return f"{folder.name}@{alias} no longer points to v{replaces}, which it was compared with"


def _parse_or_set_aside(
    folder: ModelFolder, alias: str, data: bytes, *, force: bool
) -> list[Move]:
    """The moves in a history file. Raises ReleaseError if it was altered.

    If `force` is set, copy an altered file to another name instead, and return no moves.
    """
    uri = _uri(folder, alias)
    try:
        checksummed_json.unseal(data, uri)
    except ReleaseError as error:
        if not force:
            raise ReleaseError(
                f"{error}; or start a new history with `effnet-ray models promote --force`, "
                "which keeps this one under another name"
            ) from error
        copy = f"{uri}.{local.content_etag(data)[:16]}.altered"
        storage.write_bytes(copy, data)
        logger.warning(
            "the history of %r was altered: started a new one, kept it as %s", alias, copy
        )
        return []
    return _parse(folder, alias, data)


def _new_move(
    folder: ModelFolder,
    moves: Sequence[Move],
    version: int,
    record: Mapping[str, Any],
    *,
    forced: bool,
) -> Move:
    return Move(
        version=version,
        previous=moves[-1].version if moves else None,
        when=now(),
        **eval_scores(record),
        record=record["sha256"],
        newest=max(folder.versions),
        forced=forced,
        id=uuid.uuid4().hex[:16],
    )


def _objection(
    folder: ModelFolder, moves: Sequence[Move], score: Score | None, *, strictly: bool
) -> str:
    """Why the release must not become the alias's target; empty if it may.

    With `strictly`, an equal score is not enough. The target's tombstone is looked up in storage,
    since the alias may point to a version published after the folder was listed.
    """
    if strictly and score is None:
        return "it has no eval metrics"
    last = moves[-1] if moves else None
    held = last.score if last else None
    if not last or not held or storage.exists(folder.tombstone_uri(last.version)):
        return ""
    if score is None or score.metric != held.metric:
        return f"it has no {held.metric.label} to compare with v{last.version}'s ({held})"
    if score.value < held.value:
        return f"its {held.metric.label} ({score}) is lower than v{last.version}'s ({held})"
    if strictly and score.value == held.value:
        return f"its {held.metric.label} ({score}) equals v{last.version}'s"
    return ""


def _uri(folder: ModelFolder, alias: str) -> str:
    return storage.join(folder.uri, layout.alias_path(alias))


def _serialize(folder: ModelFolder, alias: str, moves: Sequence[Move]) -> bytes:
    return checksummed_json.seal(
        {"name": folder.name, "alias": alias, "history": [asdict(move) for move in moves]}
    )


def _parse(folder: ModelFolder, alias: str, data: bytes) -> list[Move]:
    """The moves in a history file. Raises ReleaseError if it was altered."""
    uri = _uri(folder, alias)
    content = checksummed_json.unseal(data, uri)
    try:
        moves = [from_dict(Move, move) for move in content["history"]]
    except (RecipeError, LookupError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{uri} is not a valid alias history ({error}): {RESTORE}") from error
    if not moves or (content.get("name"), content.get("alias")) != (folder.name, alias):
        raise ReleaseError(f"{uri} is not the history of {folder.name}@{alias}: {RESTORE}")
    return moves
