"""What stays when code is renamed: flags, answers, persisted keys; and the fixtures that say so.

`tests/fixtures/make.py` wrote these with the code of one commit; tests hold today's against them.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pyarrow.parquet as pq
import tyro
from tyro.constructors import ConstructorRegistry

# Where the jobs are.
from effnet_ray.cli.check import check_job
from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import main
from effnet_ray.cli.models import models_job
from effnet_ray.cli.pack import pack_job
from effnet_ray.cli.predict import predict_job
from effnet_ray.cli.serve import serve_job
from effnet_ray.cli.tune import tune_job

Job = Callable[[Sequence[str]], dict[str, Any]]
JOBS: dict[str, Job] = {
    "pack": pack_job,
    "finetune": finetune_job,
    "tune": tune_job,
    "evaluate": evaluate_job,
    "predict": predict_job,
    "models": models_job,
    "check": check_job,
    "serve": serve_job,
}
VERBS = ("list", "show", "promote", "verify", "export", "delete", "gc")

HERE = Path(__file__).parents[1] / "fixtures"
ARCHIVE, CONTRACT, EXPECTED = (
    HERE / "tree.tar.xz",
    HERE / "contract.json",
    HERE / "expected.json",
)
PLACE = Path("/tmp/effnet-ray-fixtures")
"""Where the archive is unpacked and was made: records hold absolute URIs."""
STAMP = ".unpacked"
ENVIRONMENT = {
    "EFFNET_DATA": "D", "EFFNET_STORE": "S", "EFFNET_RUNS": "R", "EFFNET_WEIGHTS": "W",
    "EFFNET_SINGLE_WRITER": "1", "EFFNET_WORKERS": "7", "EFFNET_GPUS_PER_WORKER": "0.5",
}  # fmt: skip
"""Settings that flags get defaults from."""
DECIDING = {"by --local": ["--local", "--data", f"{PLACE}/data"], "by no --data": []}
"""What other flags' defaults depend on."""


def contract() -> dict[str, Any]:
    """Flags, keys of answers, keys and columns of files, as recorded."""
    said: dict[str, Any] = json.loads(CONTRACT.read_text())
    return said


def expected() -> dict[str, Any]:
    """Answers of jobs and how the unfinished runs ended, as recorded."""
    said: dict[str, Any] = json.loads(EXPECTED.read_text())
    return said


@contextmanager
def locked(*, exclusive: bool = True) -> Iterator[None]:
    """Nobody else (unpacks or) makes the fixtures meanwhile."""
    with open(f"{PLACE}.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


@contextmanager
def unpacked() -> Iterator[Path]:
    """The fixtures at their place, for reading only."""
    stamp, digest = PLACE / STAMP, hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
    while True:
        with locked(exclusive=False):
            if stamp.exists() and stamp.read_text() == digest:
                yield PLACE
                return
        with locked():
            if not stamp.exists() or stamp.read_text() != digest:
                shutil.rmtree(PLACE, ignore_errors=True)
                PLACE.mkdir()
                with tarfile.open(ARCHIVE) as archive:
                    archive.extractall(PLACE, filter="data")
                stamp.write_text(digest)


# --- flags


@contextmanager
def environment(**given: str) -> Iterator[None]:
    """No settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EFFNET_")}
    with patch.dict(os.environ, kept | given, clear=True):
        yield


def flags(**given: str) -> dict[str, dict[str, str]]:
    """Job → flag → what it takes and its default, as `--help` tells them in this environment."""
    requested = {name: (job, ["--help"]) for name, job in JOBS.items() if name != "models"}
    requested |= {f"models {verb}": (models_job, [verb, "--help"]) for verb in VERBS}
    with environment(COLUMNS="100", **given):
        return {name: _flags(_help(job, argv)) for name, (job, argv) in requested.items()}


def _help(job: Job, argv: list[str]) -> str:
    said = io.BytesIO()
    plain = patch(
        "effnet_ray.cli.parsing.tyro_registry", ConstructorRegistry
    )  # tyro's own wording
    with io.TextIOWrapper(said, "utf-8") as out:  # tyro draws its boxes for this encoding
        try:
            with plain, redirect_stdout(out):
                main(job, argv)
        except SystemExit as ended:
            assert ended.code in (0, None)
        out.flush()
        text = said.getvalue().decode()
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def _flags(text: str) -> dict[str, str]:
    result: dict[str, str] = {}
    box, name = "", ""
    for line in text.splitlines():
        if line.startswith("╭"):
            box, name = line.strip("╭╮─ "), ""
        elif line.startswith("│"):
            inner = line[2:].removesuffix("│").rstrip()
            if inner[:1] not in ("", " "):
                begins = inner.startswith("-") or box == "positional arguments"
                name = inner if begins else ""
                if name:
                    result[name] = ""
            elif name:
                result[name] += f" {inner.strip()}"
    output = {}
    for head, rest in result.items():
        names, _, prose = head.partition("  ")
        flag, _, takes = names.replace(", --", "|--").partition(" ")
        said = re.search(r"\((default: [^()]*|required|repeatable)\)$", (prose + rest).strip())
        if flag != "-h|--help":
            output[flag] = f"{takes} ({said[1] if said else ''})".strip()
    return dict(sorted(output.items()))


class _Parsed(Exception):
    """Enough is known."""


T = TypeVar("T")


def parsed(job: Job, argv: list[str]) -> dict[str, Any]:
    """Leaf → value of what a job that trains makes of its flags: with `--local`, say."""
    seen: list[Any] = []
    cli = tyro.cli

    def spy(*args: Any, **more: Any) -> Any:
        seen.append(cli(*args, **more))
        if len(seen) == 2:  # once to see what the defaults should be
            raise _Parsed
        return seen[-1]

    with environment(), patch.object(tyro, "cli", spy):
        try:
            job(argv)
        except _Parsed:
            pass
    return dict(sorted(_leaves(seen[-1])))


def _leaves(record: Any) -> Iterator[tuple[str, Any]]:
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if hasattr(value, "__dataclass_fields__"):
            yield from _leaves(value)
        else:
            yield name, list(value) if isinstance(value, tuple) else value


def flag_contract() -> dict[str, Any]:
    """What is recorded of flags."""
    decided = {
        f"defaults {how}": {name: parsed(JOBS[name], argv) for name in ("finetune", "tune")}
        for how, argv in DECIDING.items()
    }
    return {"flags": flags(), "flags by environment": flags(**ENVIRONMENT), **decided}


# --- answers


def answer(job: str, *argv: str) -> dict[str, Any]:
    """What a job prints last, run here."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(JOBS[job], list(argv))
    assert code == 0, err.getvalue()
    said: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return said


# --- files


def keys(value: Any) -> Any:
    """The keys of JSON, nested; `*` stands for the members of lists, and for a key with spaces.

    Such a key is a message for people: the reason of a quarantine, say.
    """
    if isinstance(value, Mapping):
        named = ((("*" if " " in name else name), inner) for name, inner in value.items())
        return {name: keys(inner) for name, inner in sorted(named)}
    if isinstance(value, list):
        merged: Any = {}
        for member in map(keys, value):
            merged = _merged(merged, member)
        return {"*": merged} if merged else []
    return type(value).__name__ if isinstance(value, str | bool) else "number or null"


def _merged(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            name: _merged(one[name], other[name])
            if name in one and name in other
            else one.get(name, other.get(name))
            for name in sorted({*one, *other})
        }
    return other or one


def columns(path: Path) -> dict[str, str]:
    """Column → type of a Parquet file."""
    return {field.name: str(field.type) for field in pq.read_schema(path)}


def layout(root: Path) -> dict[str, Any]:
    """Kind of file, by its path with numbers and digests left out → keys, columns or nothing."""
    result: dict[str, Any] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.name == STAMP:
            continue
        name = kind(path.relative_to(root).as_posix())
        if path.suffix == ".json":
            result[name] = _merged(result.get(name, {}), keys(json.loads(path.read_bytes())))
        elif path.suffix == ".parquet":
            result[name] = columns(path)
        else:
            result.setdefault(name, None)
    return dict(sorted(result.items()))


def kind(path: str) -> str:
    """A file's path, its digests and numbers as `#`."""
    digests = re.sub(r"(?<![0-9a-z])[0-9a-f]{16,64}(?![0-9a-z])", "#", path)
    return re.sub(r"\d+", "#", digests)
