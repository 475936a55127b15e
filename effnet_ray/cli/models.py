"""`jobs/models.py`: a verb is a dataclass of flags and a function of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, Union

import tyro

from effnet_ray import storage
from effnet_ray.cli import models_tables as tables
from effnet_ray.cli.flags import single_writer_from_environment, store_from_environment
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import ReleaseError
from effnet_ray.inference.export import export
from effnet_ray.release import aliases, catalog, maintenance, names
from effnet_ray.release.load import load_release
from effnet_ray.release.store import ModelStore


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """What all verbs are told."""

    store: str = field(default_factory=store_from_environment)
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""

    def open(self) -> ModelStore:
        """The store."""
        return ModelStore(storage.absolute(self.store))


@dataclass(frozen=True, kw_only=True)
class WritableStoreFlags(StoreFlags):
    """What verbs that change something are told besides."""

    single_writer: bool = field(default_factory=single_writer_from_environment)
    """Go on although the store's server ignores conditional writes: never two at once. Default:
    EFFNET_SINGLE_WRITER."""

    def open(self) -> ModelStore:
        """The store."""
        return ModelStore(storage.absolute(self.store), self.single_writer)


@dataclass(frozen=True, kw_only=True)
class List(StoreFlags):
    """All models: their versions and aliases, how good each is, of when, how large."""


def list_models(flags: List, people: Terminal) -> dict[str, Any]:
    """`models.py list`."""
    store = flags.open()
    found = catalog.list_models(store)
    tables.models_table(people, found, store.uri)
    return {"store": store.uri, "models": [asdict(model) for model in found]}


@dataclass(frozen=True, kw_only=True)
class Show(StoreFlags):
    """A model with its aliases' histories, or all that is recorded of one release."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME[@…]")]
    """NAME, NAME@vN or NAME@ALIAS."""


def show(flags: Show, people: Terminal) -> dict[str, Any]:
    """`models.py show`."""
    store = flags.open()
    if "@" not in flags.model:
        return _show_model(store, flags.model, people)
    folder, version = store.resolve(flags.model)
    release, record = folder.release(version), folder.record(version)
    tables.release_table(people, release.reference, release.uri, record)
    told = catalog.describe_model(folder).aliases
    held = [alias for alias, means in told.items() if means == version]
    return {
        "release": release.reference,
        "release_uri": release.uri,
        "aliases": held,
        "record": record,
    }


def _show_model(store: ModelStore, name: str, people: Terminal) -> dict[str, Any]:
    folder = store.model_folder(name)
    found, moved = catalog.describe_model(folder), aliases.histories(folder)
    tables.models_table(people, [found] if found.versions else [], store.uri)
    tables.histories_table(people, moved)
    history = {alias: [asdict(move) for move in moves] for alias, moves in moved.items()}
    return {**asdict(found), "history": history}


@dataclass(frozen=True, kw_only=True)
class Promote(WritableStoreFlags):
    """Let an alias mean a release from now on, unless that one is worse."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME@vN")]
    """NAME@vN or NAME@ALIAS."""
    alias: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALIAS")]
    """best, champion, or any name of yours."""
    force: bool = False
    """Also where the release is worse than what the alias means now, by its eval top-1 (mean
    average precision, where images may have several classes), or the seal of the alias's history
    is broken and nobody has a copy: a new one is begun, and what there was is kept beside it."""


def promote(flags: Promote, people: Terminal) -> dict[str, Any]:
    """`models.py promote`."""
    name = names.parse_reference(flags.model).name
    move = flags.open().promote(flags.model, flags.alias, force=flags.force)
    before = f", before: v{move.previous}" if move.previous else ""
    people.say(f"{name}@{flags.alias} means v{move.version}{before}")
    return {"release": f"{name}@v{move.version}", "alias": flags.alias, **asdict(move)}


@dataclass(frozen=True, kw_only=True)
class Export(StoreFlags):
    """Write a release as ONNX or as PyTorch's exported program, held against the release."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME@…")]
    """NAME@vN, NAME@ALIAS, or a release's URI."""
    out: str
    """URI of the folder to write: the model and export.json, which says what it expects."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: model.onnx (needs the extra `onnx`); torch: model.pt2, for torch.export.load."""


def export_model(flags: Export, people: Terminal) -> dict[str, Any]:
    """`models.py export`."""
    exported = export(load_release(flags.model, flags.store), flags.out, flags.format)
    size, apart = f"{exported.bytes / 1e6:,.1f} MB", f"{exported.difference:.1e}"
    people.table(f"{exported.release} as {exported.format}", {
        "file": f"{exported.file} ({size})",
        "held against the release": f"logits differ by {apart} at most",
    })  # fmt: skip
    return asdict(exported)


@dataclass(frozen=True, kw_only=True)
class Verify(StoreFlags):
    """Read every byte of releases again and hold it against its SHA-256, and aliases against the
    releases they were moved to."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME[@…]")] = ""
    """NAME, NAME@vN or NAME@ALIAS; not given: all there is."""


def verify(flags: Verify, people: Terminal) -> dict[str, Any]:
    """`models.py verify`. Raises ReleaseError where anything is not as it was released."""
    store = flags.open()
    told: dict[str, list[str]] = {"verified": [], "aliases": [], "unfinished": []}
    told["unfinished"] = _unfinished(store, flags.model)
    for reference in told["unfinished"]:
        people.say(f"… {reference} is claimed, without a record: publishing again finishes it")
    damaged = []
    for what, reference, check in _checks(store, flags.model):
        try:
            check()
        except ReleaseError as error:
            people.say(f"✗ {reference}  {error}")
            damaged.append(str(error))
        else:
            people.say(f"✓ {reference}")
            told[what].append(reference)
    if damaged:
        more = f"; {len(damaged) - 1} more are damaged, named above" if damaged[1:] else ""
        raise ReleaseError(damaged[0] + more)
    return {"store": store.uri, **told}


def _unfinished(store: ModelStore, model: str) -> list[str]:
    """What is asked for and claimed: its publisher is at work or died, or its record is gone."""
    if "@" in model:
        return []
    folders = [store.model_folder(name) for name in ([model] if model else store.models())]
    return [folder.release(v).reference for folder in folders for v in folder.unfinished]


def _checks(
    store: ModelStore, model: str
) -> Iterator[tuple[Literal["verified", "aliases"], str, Callable[[], None]]]:
    """What is asked for, by name: a release, or all of a model or the store, aliases too."""
    if "@" in model:
        folder, version = store.resolve(model)
        yield (
            "verified",
            folder.release(version).reference,
            partial(maintenance.verify, folder, version),
        )
        alias = names.parse_reference(model).alias
        if alias:
            yield "aliases", model, partial(aliases.verify, folder, alias)
        return
    for folder in [store.model_folder(name) for name in ([model] if model else store.models())]:
        for version in folder.versions:
            reference = folder.release(version).reference
            yield "verified", reference, partial(maintenance.verify, folder, version)
        for alias in folder.aliases:
            yield "aliases", f"{folder.name}@{alias}", partial(aliases.verify, folder, alias)


@dataclass(frozen=True, kw_only=True)
class Delete(WritableStoreFlags):
    """Delete a release for good: its number is never used again."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME@vN")]
    """Which."""
    force: bool = False
    """Also where an alias means it. `best` moves to the best of what is left; others mean
    nothing."""


def delete(flags: Delete, people: Terminal) -> dict[str, Any]:
    """`models.py delete`."""
    done = flags.open().delete(flags.model, force=flags.force)
    people.say(f"{flags.model} is deleted")
    if done.best:
        people.say(f"'best' means v{done.best.version} now")
    for alias in done.aliases:
        people.say(f"the alias {alias!r} means nothing now: promote another version")
    best = done.best.version if done.best else None
    return {"deleted": flags.model, "aliases": done.aliases, "best": best}


@dataclass(frozen=True, kw_only=True)
class Gc(WritableStoreFlags):
    """Finish what dead publishers began, and remove leftovers that nobody works with."""

    older_than: float = maintenance.STALE_AFTER_S / 3600
    """Hours since the newest byte of what is touched: longer than any publishing takes."""


def gc(flags: Gc, people: Terminal) -> dict[str, Any]:
    """`models.py gc`."""
    done = flags.open().gc(flags.older_than * 3600)
    found = [
        *(f"finished {release}" for release in done.finished),
        *(f"buried {release}" for release in done.buried),
        *(f"removed {uri}" for uri in done.removed),
        *([f"aborted {done.uploads} unfinished uploads"] if done.uploads else ()),
    ]
    for line in found or ["nothing to collect"]:
        people.say(line)
    if done.unlisted:
        people.say(f"unfinished uploads could not be looked for: {done.unlisted}")
    return asdict(done)


VERBS: dict[str, tuple[type[Any], Callable[[Any, Terminal], dict[str, Any]]]] = {
    "list": (List, list_models),
    "show": (Show, show),
    "promote": (Promote, promote),
    "verify": (Verify, verify),
    "export": (Export, export_model),
    "delete": (Delete, delete),
    "gc": (Gc, gc),
}


def models_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/models.py`."""
    kinds = [Annotated[kind, tyro.conf.subcommand(verb)] for verb, (kind, _) in VERBS.items()]
    either: Any = Union[tuple(kinds)]  # noqa: UP007  # a type made at run time
    flags = tyro.cli(either, args=argv)
    act = next(function for kind, function in VERBS.values() if type(flags) is kind)
    return act(flags, Terminal())
