"""`models promote`: point an alias to a release, if wanted only to a better one."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from effnet_ray import storage
from effnet_ray.cli.compare import compare, data_of
from effnet_ray.cli.flags import (
    connector,
    default_single_writer,
    default_store,
    default_workers,
)
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import EvaluationError
from effnet_ray.placement import Placement, Workers
from effnet_ray.release import names
from effnet_ray.release.alias_move import Move
from effnet_ray.release.store import ModelStore
from effnet_ray.schema import require

if TYPE_CHECKING:
    from effnet_ray.inference.paired_test import PairedTest


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Point an alias to a release, unless that release is worse than the current one."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME@vN")]
    """The release to point to: NAME@vN or NAME@ALIAS."""
    alias: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALIAS")]
    """best, champion, or any other name."""
    store: str = field(default_factory=default_store)
    """The model store. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    single_writer: bool = field(default_factory=default_single_writer)
    """For a store whose server ignores conditional writes: change it anyway. You guarantee that
    only one command does so at a time. Default: EFFNET_SINGLE_WRITER, else off."""
    force: bool = False
    """Promote even if the release has a lower eval top-1 (mean average precision, with several
    labels per image) than the current one. If the alias's history is damaged, start a new one and
    keep the damaged file."""
    if_better: bool = False
    """Evaluate both releases on the same images, and promote only if the new one is better by a
    paired test (p < 0.05). Otherwise the exit code is 1."""
    data: str = ""
    """With --if-better: the packed data set. Default: that of the release's run."""
    split: Literal["eval", "test"] = "eval"
    """With --if-better: the split to compare on. Releases are chosen on eval: test is fairer."""
    workers: Annotated[tyro.conf.OmitArgPrefixes[Workers], tyro.conf.arg(name="Cluster")] = field(
        default_factory=default_workers
    )

    def open(self) -> ModelStore:
        """The store."""
        return ModelStore(storage.absolute(self.store), self.single_writer)


def promote(flags: Promote, terminal: Terminal) -> dict[str, Any]:
    """Run `models promote`. Raises EvaluationError if the release is not better."""
    require(not (flags.force and flags.if_better), "force", True, "either --force or --if-better")
    name, store = names.parse_reference(flags.model).name, flags.open()
    store.check_promotable(flags.model, flags.alias)
    model = store.find(flags.model).reference  # an alias may move while releases are compared
    paired, replaces = None, None
    if flags.if_better:
        current = _current(store, name, flags.alias)
        replaces = current.version if current else 0
        if replaces and model != f"{name}@v{replaces}":
            paired = _compare(flags, model, f"{name}@v{replaces}", terminal)
    move = store.promote(model, flags.alias, force=flags.force, replaces=replaces)
    before = f" (before: v{move.previous})" if move.previous else ""
    terminal.print(f"{name}@{flags.alias} now points to v{move.version}{before}")
    compared = {"compared": asdict(paired)} if paired else {}
    return {"release": f"{name}@v{move.version}", "alias": flags.alias, **asdict(move), **compared}


def _current(store: ModelStore, name: str, alias: str) -> Move | None:
    """The alias's newest move; None if it has none, or its release was deleted."""
    moves = store.history(name, alias)
    return moves[-1] if moves and moves[-1].version in store.versions(name) else None


def _compare(flags: Promote, model: str, current: str, terminal: Terminal) -> "PairedTest":
    """Compare with the alias's release. Raises EvaluationError if the new one is not better."""
    from effnet_ray.inference.evaluate import evaluate
    from effnet_ray.release.load import load_release

    release, other = (load_release(name, flags.store) for name in (model, current))
    placement = Placement(**asdict(flags.workers))
    connect = connector(terminal, local=False, verbose=False)
    evaluation = evaluate(
        release,
        data_of(release, flags.data),
        placement,
        split=flags.split,
        examples=0,
        on_progress=terminal.image_progress(f"evaluating {release.reference}", "evaluated"),
        connect=connect,
    )
    paired = compare(evaluation, other, placement, connect, terminal)
    terminal.print(f"{release.reference} against {current} on {flags.split}: {paired}")
    if not paired.is_better:
        raise EvaluationError(
            f"{release.reference} is not better than {current} on the {paired.images:,} "
            f"{flags.split} images of {evaluation.data} ({paired}): nothing was promoted; promote "
            "without --if-better, or compare on more images"
        )
    return paired
