"""Shared by tests: copied."""

from pathlib import Path


def copied(packed: Path, to: Path) -> Path:
    for path in packed.rglob("*"):
        if path.is_file():
            (to / path.relative_to(packed)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(packed)).write_bytes(path.read_bytes())
    return to
