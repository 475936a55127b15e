"""Tables of the model store."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from effnet_ray.cli.terminal import Terminal
from effnet_ray.release.aliases import Move
from effnet_ray.release.catalog import Model, Version

NOTHING = "–"


def models_table(people: Terminal, found: Sequence[Model], store: str) -> None:
    """A line for every version of every model."""
    if not found:
        people.say(f"no releases in {store}")
        return
    table = _table("release", "aliases", "eval", "variant", "published", "MB")
    for model in found:
        for number, version in enumerate(model.versions):
            if number == 0 and table.row_count:
                table.add_section()
            table.add_row(*_row(model, version))
    people.console.print(table)
    for version in (version for model in found for version in model.versions if version.damaged):
        people.say(f"{version.reference} is damaged: {version.damaged}")


def _row(model: Model, version: Version) -> tuple[str, ...]:
    named = [
        alias
        for alias, means in model.aliases.items()
        if f"{model.name}@v{means}" == version.reference
    ]
    return (
        version.reference,
        ", ".join(named),
        "damaged" if version.damaged else _score(version),
        version.variant.upper() or NOTHING,
        version.published[:16].replace("T", " ") or NOTHING,
        f"{version.size / 1e6:,.1f}",
    )


def histories_table(people: Terminal, moved: Mapping[str, Sequence[Move]]) -> None:
    """What each alias has meant, the newest last."""
    if not moved:
        return
    table = _table("alias", "version", "before", "eval", "when", "")
    for alias, moves in moved.items():
        for move in moves:
            table.add_row(
                alias,
                f"v{move.version}",
                f"v{move.previous}" if move.previous else NOTHING,
                _score(move),
                move.when[:16].replace("T", " "),
                "forced" if move.forced else "",
            )
    people.console.print()
    people.console.print(table)


def release_table(people: Terminal, reference: str, uri: str, record: Mapping[str, Any]) -> None:
    """All that a release's record says."""
    hidden = {"name", "version", "files", "sizes", "sha256"}
    rows = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in record.items()
        if name not in hidden
    }
    sizes = record["sizes"].items()
    files = ", ".join(f"{name} ({size / 1e3:,.1f} kB)" for name, size in sizes)
    people.table(reference, {"folder": uri, "files": files, **rows})


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for column in columns:
        numbers = column in ("eval", "MB")
        table.add_column(column, overflow="fold", justify="right" if numbers else "left")
    return table


def _score(told: Version | Move) -> str:
    """What it is judged by."""
    if told.eval_map is not None:
        return f"mAP {told.eval_map:.2%}"
    return NOTHING if told.eval_top1 is None else f"top-1 {told.eval_top1:.2%}"
