"""Names that move from version to version: `best`, `champion`, anybody's own.

`STORE/NAME/aliases/ALIAS.json` is the alias's whole history, sealed. It is moved by
compare-and-swap, so that of two moves at once neither is lost: the later one sees the other.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, ConflictError, RecipeError, ReleaseError
from effnet_ray.release.model_folder import ALIASES, ModelFolder
from effnet_ray.release.names import BEST, Release, check_alias
from effnet_ray.release.publish import now
from effnet_ray.schema import from_dict
from effnet_ray.storage import checksummed_json, conditional, local

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One entry of an alias's history."""

    version: int
    previous: int | None
    """What the alias meant before; None for its first move."""
    when: str
    """ISO 8601, UTC."""
    eval_top1: float | None
    """Of the release; None where its metrics.json says none."""
    record: str
    """`sha256` of the release's release.json."""
    newest: int
    """The newest version there was then: what `best` need not be held against again."""
    forced: bool
    """Whether the move was made without regard to the metric."""
    id: str
    """Of this move alone: no two moves are written by the same bytes."""
    eval_map: float | None = None
    """Mean average precision, by which releases for images of several classes are compared."""

    @property
    def score(self) -> "Score | None":
        """By what releases are compared."""
        return Score.of(asdict(self))


@dataclass(frozen=True, slots=True)
class Score:
    """How good a release is, by one figure or another."""

    by: str
    value: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Score | None":
        """Of a release or a move; None where it tells none."""
        mean_ap, top1 = record.get("eval_map"), record.get("eval_top1")
        if mean_ap is not None:
            return cls("mean average precision", mean_ap)
        return None if top1 is None else cls("eval top-1", top1)


def history(shelf: ModelFolder, alias: str) -> list[Move]:
    """Every move, the first first; empty where there is no such alias.

    Raises ReleaseError where the history is altered.
    """
    seen = conditional.read(_uri(shelf, alias))
    return _moves(shelf, alias, seen.data) if seen else []


def current(shelf: ModelFolder, alias: str) -> Release:
    """The release that an alias means. Raises ReleaseError where there is none."""
    moves = history(shelf, alias)
    if not moves:
        store = shelf.uri.rpartition("/")[0]
        raise ReleaseError(f"{shelf.name}@{alias} is not in {store}: it has {shelf.have()}")
    return _meant(shelf, alias, moves[-1])


def verify(shelf: ModelFolder, alias: str) -> None:
    """Hold an alias's history against itself and against the releases that are left of it.

    Raises ReleaseError where the history is altered, a move is missing from it, a release is not
    the one that the alias was moved to, or what it means now is gone or its record damaged.
    """
    moves = history(shelf, alias)
    for before, move in zip([None, *moves], moves, strict=False):
        if move.previous != (before.version if before else None):
            raise ReleaseError(
                f"{_uri(shelf, alias)} misses what was before the move of {move.when} to "
                f"v{move.version}: restore it"
            )
        if move.version in shelf.versions:
            _meant(shelf, alias, move)
    if moves:
        _meant(shelf, alias, moves[-1])


def _meant(shelf: ModelFolder, alias: str, move: Move) -> Release:
    """The release that an alias was moved to. Raises ReleaseError where it is another, or gone."""
    version = move.version
    if version not in shelf.versions:
        raise ReleaseError(
            f"{shelf.name}@{alias} means v{version}, which is not there any more: move it by "
            f"`models.py promote` to one of {shelf.have()}"
        )
    if shelf.record(version)["sha256"] != move.record:
        raise ReleaseError(
            f"{shelf.name}@v{version} is not the release that {alias!r} was moved to: restore "
            "it, or promote another version"
        )
    return shelf.release(version)


def promote(shelf: ModelFolder, alias: str, version: int, *, force: bool = False) -> Move:
    """Let the alias mean this version from now on; its newest move.

    Raises ReleaseError where the version is not there; unless forced, also where it is worse by
    its score than what the alias means now, or that cannot be told, or the history's seal is
    broken: a new one is begun then, and what there was is kept beside it.
    """
    moved = _move(shelf, check_alias(alias), version, force=force, better_only=False)
    assert moved is not None
    return moved


def update_best(shelf: ModelFolder) -> Move | None:
    """Move `best` to the best release that it has not been held against, if that is better.

    Those are the versions that came after its last move: a publisher may have died before it came
    to this; and where a person moved `best` back, it stays. Where what it means was deleted, that
    choice is void: it is held against all that are left.
    """
    moves = history(shelf, BEST)
    void = bool(moves) and moves[-1].version in shelf.buried
    seen = 0 if void else max((move.newest for move in moves), default=0)
    scores = {}
    for version in shelf.versions:
        with suppress(ReleaseError):  # damaged: `verify` tells
            if version > seen:
                scores[version] = Score.of(shelf.record(version))
    newest = next((scores[version] for version in sorted(scores, reverse=True)), None)
    last = newest if void else moves[-1].score if moves else None
    by = {last.by} if last else set()
    known = {
        version: score.value
        for version, score in scores.items()
        if score is not None and by <= {score.by}  # others cannot be compared
    }
    if not known:
        return None
    chosen = max(known, key=lambda version: (known[version], -version))
    return _move(shelf, BEST, chosen, force=False, better_only=True)


def _move(
    shelf: ModelFolder, alias: str, version: int, *, force: bool, better_only: bool
) -> Move | None:
    shelf.existing(version)
    record, uri = shelf.record(version), _uri(shelf, alias)
    while True:
        seen = conditional.read(uri)
        moves = _moves_or_none(shelf, alias, seen.data, force=force) if seen else []
        if moves and moves[-1].version == version:
            return None if better_only else moves[-1]
        why = _worse(shelf, moves, Score.of(record), strictly=better_only)
        if better_only and why:
            return None
        if why and not force:
            raise ReleaseError(
                f"{shelf.name}@v{version} does not become {alias!r}: {why}: choose another "
                "version, or say --force"
            )
        anew = seen is not None and not moves
        new = _new(shelf, moves, version, record, forced=bool(why) or anew)
        data = _written(shelf, alias, [*moves, new])
        try:
            if seen:
                conditional.swap(uri, data, seen.etag)
            else:
                storage.write_bytes(uri, data, exclusive=True)
        except (AlreadyExistsError, ConflictError):
            continue  # somebody else moved it: look again at what it means
        return new


def _moves_or_none(shelf: ModelFolder, alias: str, data: bytes, *, force: bool) -> list[Move]:
    """The history; none of it where its seal is broken and a new one is to be begun.

    Raises ReleaseError where it is broken, unless forced: then it is kept under another name.
    """
    uri = _uri(shelf, alias)
    try:
        checksummed_json.unseal(data, uri)
    except ReleaseError as error:
        if not force:
            raise ReleaseError(
                f"{error}; or begin it anew by `models.py promote --force`, which keeps this one "
                "beside it"
            ) from error
        kept = f"{uri}.{local.content_etag(data)[:16]}.altered"
        storage.write_bytes(kept, data)
        logger.warning("the altered history of %r is kept as %s: a new one begins", alias, kept)
        return []
    return _moves(shelf, alias, data)


def _new(
    shelf: ModelFolder,
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
        eval_top1=record.get("eval_top1"),
        eval_map=record.get("eval_map"),
        record=record["sha256"],
        newest=max(shelf.versions),
        forced=forced,
        id=uuid.uuid4().hex[:16],
    )


def _worse(
    shelf: ModelFolder, moves: Sequence[Move], score: Score | None, *, strictly: bool
) -> str:
    """Why a release is not what the alias should mean; empty where it may.

    What is there is asked now: the alias may mean a version that came after the shelf was seen.
    """
    if strictly and score is None:
        return "it has no eval figures"
    last = moves[-1] if moves else None
    held = last.score if last else None
    if not last or not held or storage.exists(shelf.tombstone(last.version)):
        return ""
    if score is None or score.by != held.by:
        return f"it has no {held.by}, and v{last.version} has {held.value:.2%}"
    if score.value < held.value or (strictly and score.value == held.value):
        return f"its {held.by} is {score.value:.2%}, that of v{last.version} {held.value:.2%}"
    return ""


def _uri(shelf: ModelFolder, alias: str) -> str:
    return storage.join(shelf.uri, ALIASES, f"{alias}.json")


def _written(shelf: ModelFolder, alias: str, moves: Sequence[Move]) -> bytes:
    told = {"name": shelf.name, "alias": alias, "history": [asdict(move) for move in moves]}
    return checksummed_json.seal(told)


def _moves(shelf: ModelFolder, alias: str, data: bytes) -> list[Move]:
    uri = _uri(shelf, alias)
    content = checksummed_json.unseal(data, uri)
    try:
        moves = [from_dict(Move, each) for each in content["history"]]
    except (RecipeError, LookupError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{uri} is no alias's history ({error}): restore it") from error
    if not moves or (content.get("name"), content.get("alias")) != (shelf.name, alias):
        raise ReleaseError(f"{uri} is not the history of {shelf.name}@{alias}: restore it")
    return moves
