"""Tables of the model store."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from effnet_ray.cli.terminal import Terminal
from effnet_ray.release.alias_move import Move
from effnet_ray.release.catalog import Model, Version

NOTHING = "–"


def print_models(terminal: Terminal, models: Sequence[Model], store: str) -> None:
    """Print a row for every version of every model."""
    if not models:
        terminal.print(f"no releases in {store}")
        return
    table = _table("release", "aliases", "eval", "variant", "published", "MB")
    for model in models:
        for number, version in enumerate(model.versions):
            if number == 0 and table.row_count:
                table.add_section()
            table.add_row(*_version_cells(model, version))
    terminal.console.print(table)
    for version in (version for model in models for version in model.versions if version.damaged):
        terminal.print(f"{version.reference} is damaged: {version.damaged}")


def _version_cells(model: Model, version: Version) -> tuple[str, ...]:
    aliases = [
        alias
        for alias, target in model.aliases.items()
        if f"{model.name}@v{target}" == version.reference
    ]
    return (
        version.reference,
        ", ".join(aliases),
        "damaged" if version.damaged else _score(version),
        version.variant.upper() or NOTHING,
        version.published[:16].replace("T", " ") or NOTHING,
        f"{version.size / 1e6:,.1f}",
    )


def print_histories(terminal: Terminal, histories: Mapping[str, Sequence[Move]]) -> None:
    """Print the moves of each alias, the latest last."""
    if not histories:
        return
    table = _table("alias", "version", "previous", "eval", "when", "")
    for alias, moves in histories.items():
        for move in moves:
            table.add_row(
                alias,
                f"v{move.version}",
                f"v{move.previous}" if move.previous else NOTHING,
                _score(move),
                move.when[:16].replace("T", " "),
                "forced" if move.forced else "",
            )
    terminal.console.print()
    terminal.console.print(table)


def print_release(terminal: Terminal, reference: str, uri: str, record: Mapping[str, Any]) -> None:
    """Print a release's record."""
    hidden = {"name", "version", "files", "sizes", "sha256"}
    rows = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in record.items()
        if name not in hidden
    }
    sizes = record["sizes"].items()
    files = ", ".join(f"{name} ({size / 1e3:,.1f} kB)" for name, size in sizes)
    terminal.print_summary(reference, {"folder": uri, "files": files, **rows})


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for column in columns:
        numeric = column in ("eval", "MB")
        table.add_column(column, overflow="fold", justify="right" if numeric else "left")
    return table


def _score(entry: Version | Move) -> str:
    """The metric that releases are compared by."""
    score = entry.score
    return f"{score.metric.name} {score}" if score else NOTHING
