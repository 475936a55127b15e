"""`models`: manage the releases of a model store. Each verb is a dataclass and a function."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from effnet_ray import storage
from effnet_ray.cli import models_tables as tables
from effnet_ray.cli.average import Average, average_checkpoints
from effnet_ray.cli.compare import data_of
from effnet_ray.cli.flags import default_single_writer, default_store
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.promote import Promote, promote
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import ReleaseError
from effnet_ray.release import aliases, catalog, maintenance, names
from effnet_ray.release.store import ModelStore
from effnet_ray.schema import require
from effnet_ray.train.metric_definitions import EVAL_TOP1

if TYPE_CHECKING:
    from effnet_ray.inference.quantize import Quantized, QuantizeOptions
    from effnet_ray.release.load import LoadedRelease

DESCRIPTION = (
    "List, show, promote, verify, export, average, delete and clean up (gc) the releases of a "
    "store."
)


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """The flags of all verbs."""

    store: str = field(default_factory=default_store)
    """The model store. Default: EFFNET_STORE, else ~/effnet-ray/store."""

    def open(self) -> ModelStore:
        """The store."""
        return ModelStore(storage.absolute(self.store))


@dataclass(frozen=True, kw_only=True)
class WritableStoreFlags(StoreFlags):
    """The flags of verbs that change the store."""

    single_writer: bool = field(default_factory=default_single_writer)
    """For a store whose server ignores conditional writes: change it anyway. You guarantee that
    only one command does so at a time. Default: EFFNET_SINGLE_WRITER, else off."""

    def open(self) -> ModelStore:
        """The store."""
        return ModelStore(storage.absolute(self.store), self.single_writer)


@dataclass(frozen=True, kw_only=True)
class List(StoreFlags):
    """List all models: versions, aliases, scores, dates and sizes."""


def list_models(flags: List, terminal: Terminal) -> dict[str, Any]:
    """Run `models list`."""
    store = flags.open()
    models = catalog.list_models(store)
    tables.print_models(terminal, models, store.uri)
    return {"store": store.uri, "models": [model.as_json() for model in models]}


@dataclass(frozen=True, kw_only=True)
class Show(StoreFlags):
    """Show a model with the history of its aliases, or the full record of one release."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME[@…]")]
    """NAME, NAME@vN or NAME@ALIAS."""


def show(flags: Show, terminal: Terminal) -> dict[str, Any]:
    """Run `models show`."""
    store = flags.open()
    if "@" not in flags.model:
        return _show_model(store, flags.model, terminal)
    folder, version = store.resolve(flags.model)
    release, record = folder.release(version), folder.record(version)
    tables.print_release(terminal, release.reference, release.uri, record)
    targets = catalog.describe_model(folder).aliases
    return {
        "release": release.reference,
        "release_uri": release.uri,
        "aliases": [alias for alias, target in targets.items() if target == version],
        "record": record,
    }


def _show_model(store: ModelStore, name: str, terminal: Terminal) -> dict[str, Any]:
    folder = store.model_folder(name)
    model, histories = catalog.describe_model(folder), aliases.histories(folder)
    tables.print_models(terminal, [model] if model.versions else [], store.uri)
    tables.print_histories(terminal, histories)
    history = {alias: [asdict(move) for move in moves] for alias, moves in histories.items()}
    return {**model.as_json(), "history": history}


@dataclass(frozen=True, kw_only=True)
class Export(StoreFlags):
    """Export a release to ONNX or to a PyTorch exported program, and compare its outputs."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME@…")]
    """NAME@vN, NAME@ALIAS, or a release's URI."""
    out: str
    """URI of the folder for the model and export.json, which describes the inputs."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: model.onnx (needs the extra `onnx`); torch: model.pt2, for torch.export.load."""
    quantize: Literal["", "int8"] = ""
    """int8: convolutions compute in int8, with ranges from train images; top-1 on the eval split
    is measured before and after. Only with --format onnx."""
    data: str = ""
    """With --quantize: the packed data set to measure on. Default: that of the release's run."""
    max_drop: float = 1.0
    """With --quantize: refuse to lose more points of eval top-1 than this."""
    limit: int | None = None
    """With --quantize: measure on the first N eval images only. Default: all."""

    def quantizing(self, release: "LoadedRelease") -> "QuantizeOptions | None":
        """What to quantize on; None without --quantize."""
        from effnet_ray.inference.quantize import QuantizeOptions

        if not self.quantize:
            return None
        data = data_of(release, self.data)
        return QuantizeOptions(data=data, max_drop=self.max_drop, limit=self.limit)


def export_model(flags: Export, terminal: Terminal) -> dict[str, Any]:
    """Run `models export`."""
    from effnet_ray.inference.export import export
    from effnet_ray.release.load import load_release

    release = load_release(flags.model, flags.store)
    quantizing = flags.quantizing(release)
    exported = export(release, flags.out, flags.format, quantizing, terminal.print)
    terminal.print_summary(
        f"{exported.release} as {exported.format}",
        {
            "file": f"{exported.file} ({exported.bytes / 1e6:,.1f} MB)",
            "check": f"logits differ from the release's by at most {exported.difference:.1e}",
            **(_quantized_facts(exported.quantized) if exported.quantized else {}),
        },
    )
    return exported.as_json()


def _quantized_facts(quantized: "Quantized") -> dict[str, str]:
    """What int8 changed, for people."""
    images, top1 = quantized.eval_images, EVAL_TOP1
    return {
        "check": "before quantizing, logits differed from the release's by float noise only",
        "int8": f"{quantized.convolutions - quantized.float_convolutions} of "
        f"{quantized.convolutions} convolutions",
        "top-1": f"{top1.format(quantized.top1, images)}, in float32 "
        f"{top1.format(quantized.top1_float, images)}",
        "size": f"float32 {quantized.bytes_float / 1e6:,.1f} MB",
        "latency": f"{quantized.ms:.1f} ms an image, float32 {quantized.ms_float:.1f} ms",
    }


@dataclass(frozen=True, kw_only=True)
class Verify(StoreFlags):
    """Read every byte of the releases again and compare SHA-256; check where aliases point."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME[@…]")] = ""
    """NAME, NAME@vN or NAME@ALIAS. Default: the whole store."""


def verify(flags: Verify, terminal: Terminal) -> dict[str, Any]:
    """Run `models verify`. Raises ReleaseError if anything has changed since its release."""
    store = flags.open()
    results: dict[str, list[str]] = {"verified": [], "aliases": [], "unfinished": []}
    results["unfinished"] = _unfinished(store, flags.model)
    for reference in results["unfinished"]:
        terminal.print(f"… {reference} is unfinished: publish again to complete it")
    errors = []
    for kind, reference, check in _checks(store, flags.model):
        try:
            check()
        except ReleaseError as error:
            terminal.print(f"✗ {reference}  {error}")
            errors.append(str(error))
        else:
            terminal.print(f"✓ {reference}")
            results[kind].append(reference)
    if errors:
        more = f"; {len(errors) - 1} more are damaged, see above" if errors[1:] else ""
        raise ReleaseError(errors[0] + more)
    return {"store": store.uri, **results}


def _unfinished(store: ModelStore, model: str) -> list[str]:
    """Versions that are claimed but have no record.

    Their publish is running or was interrupted, or the record was deleted.
    """
    if "@" in model:
        return []
    folders = [store.model_folder(name) for name in ([model] if model else store.models())]
    return [folder.release(v).reference for folder in folders for v in folder.unfinished]


def _checks(
    store: ModelStore, model: str
) -> Iterator[tuple[Literal["verified", "aliases"], str, Callable[[], None]]]:
    """Kind, reference and check of a release; or of all of a model or store, with aliases."""
    if "@" in model:
        folder, version = store.resolve(model)
        reference = folder.release(version).reference
        yield "verified", reference, partial(maintenance.verify, folder, version)
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
    """Delete a release for good. Its version number is never used again."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME@vN")]
    """The release."""
    force: bool = False
    """Delete even if aliases point to it. `best` moves to the best remaining release; other
    aliases are left without a target."""


def delete(flags: Delete, terminal: Terminal) -> dict[str, Any]:
    """Run `models delete`."""
    deleted = flags.open().delete(flags.model, force=flags.force)
    terminal.print(f"deleted {flags.model}")
    if deleted.best:
        terminal.print(f"'best' now points to v{deleted.best.version}")
    for alias in deleted.aliases:
        terminal.print(f"alias {alias!r} now points to the deleted version: promote another one")
    best = deleted.best.version if deleted.best else None
    return {"deleted": flags.model, "aliases": deleted.aliases, "best": best}


@dataclass(frozen=True, kw_only=True)
class Gc(WritableStoreFlags):
    """Finish interrupted publishes and delete their leftovers."""

    older_than: float = maintenance.STALE_AFTER_S / 3600
    """Delete only leftovers unchanged for this many hours; longer than any publish takes."""


def gc(flags: Gc, terminal: Terminal) -> dict[str, Any]:
    """Run `models gc`."""
    require(flags.older_than >= 0, "older-than", flags.older_than, "0 hours or more")
    result = flags.open().gc(flags.older_than * 3600)
    lines = [
        *(f"completed {release}" for release in result.finished),
        *(
            f"deleted {release}: its publish was interrupted and cannot be completed"
            for release in result.buried
        ),
        *(f"deleted {uri}" for uri in result.removed),
        *([f"aborted {result.uploads} unfinished uploads"] if result.uploads else ()),
    ]
    for line in lines or ["nothing to delete"]:
        terminal.print(line)
    if result.unlisted:
        terminal.print(f"unfinished uploads could not be listed: {result.unlisted}")
    return asdict(result)


VERBS: dict[str, tuple[type[Any], Callable[[Any, Terminal], dict[str, Any]]]] = {
    "list": (List, list_models),
    "show": (Show, show),
    "promote": (Promote, promote),
    "verify": (Verify, verify),
    "export": (Export, export_model),
    "average": (Average, average_checkpoints),
    "delete": (Delete, delete),
    "gc": (Gc, gc),
}


def verb_flags() -> Any:
    """The union of the verbs' flags, for tyro."""
    flags = [Annotated[kind, tyro.conf.subcommand(verb)] for verb, (kind, _) in VERBS.items()]
    return Union[tuple(flags)]  # noqa: UP007  # built at run time


def models_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `models`."""
    flags: Any = parse(verb_flags(), argv, description=DESCRIPTION)
    run = next(function for kind, function in VERBS.values() if type(flags) is kind)
    return run(flags, Terminal())
