"""Writes `results/chaos.md` from the recorded runs."""

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Runs = Sequence[dict[str, Any]]
PACKAGES = ("ray", "torch", "pyarrow")


def write(folder: Path, out: Path) -> None:
    """Write the page from `folder`/ARM.jsonl."""
    text = [HEAD.format(machine=_machine())]
    for arm, section in SECTIONS.items():
        path = folder / f"{arm}.jsonl"
        if path.exists():
            text += section(_read(path))
        if arm == "train":
            text += _arms(folder)
    failures = [*_failures(folder)]
    text += ["## Failures", "", *(failures or ["None of the runs above failed."]), ""]
    out.write_text("\n".join(text))


HEAD = """# Kills, crashes and faults

Made by `python benchmarks/chaos.py ARM`, then `python benchmarks/chaos.py table`; every run stands
in [chaos/](chaos/). {machine}
Times were measured while other runs and tests kept the cores busy.
"""


def _read(path: Path) -> Runs:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {python}, {packages}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines] + [""]


def _quantile(values: Sequence[float], share: float) -> str:
    """A quantile with one decimal; "-" of nothing."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.quantiles(values, n=100, method='inclusive')[round(share * 100) - 1]:.1f}"


def _train(runs: Runs) -> list[str]:
    kills = [kill for run in runs for kill in run["kills"]]
    kinds = Counter(kill["kind"] for kill in kills)
    places = Counter(run["place"] for run in runs)
    rows = [
        [kind, count, *_recovery([kill for kill in kills if kill["kind"] == kind])]
        for kind, count in kinds.most_common()
    ]
    return [
        "## Fine-tuning", "",
        f"{len(runs)} runs of 60 steps with 2 workers on a cluster of a head and three machines, "
        f"{len(kills)} SIGKILLs; data, run and store on {_listed(places)}. faulty: S3 behind a "
        "proxy that fails 5 % of all requests, cuts 2 % short and delays 1 % by 2 s.",
        "Each must end with every image once per epoch, weights that are bit-equal to those of an "
        "undisturbed run in plain processes, one release that verifies, no file that `models gc` "
        "leaves, and no process that does not end.", "",
        *_table(["killed", "times", "stalled the run", "p50, s", "p95, s"], rows),
    ]  # fmt: skip


def _recovery(kills: Runs) -> list[object]:
    """Number of kills that stalled a run, and for how long."""
    stalls = [kill["recovered_s"] for kill in kills if kill["recovered_s"]]
    return [len(stalls), _quantile(stalls, 0.5), _quantile(stalls, 0.95)]


def _arms(folder: Path) -> list[str]:
    """The same kills, with and without this package."""
    rows = []
    for arm, name in (("train", "effnet_ray"), ("plain", "plain Ray Train")):
        path = folder / f"{arm}.jsonl"
        if not path.exists():
            continue
        runs = _read(path)
        kills = [kill for run in runs for kill in run["kills"]]
        wasted = [run["wasted_steps"] / max(1, len(run["kills"])) for run in runs]
        rows.append([
            name, len(runs), len(kills), sum(bool(run["failure"]) for run in runs),
            *(sum(run.get(key, 0) for run in runs) for key in ("duplicates", "misses")),
            f"{statistics.mean(wasted):.1f}", *_recovery(kills)[1:],
        ])  # fmt: skip
    return rows and [
        "### Beside plain Ray Train", "",
        "Plain: Ray's checkpoints every 2 steps, `streaming_split` and a local shuffle, the same "
        "network, images, kills (by seed) and places.", "",
        *_table(
            ["", "runs", "kills", "failed", "images used twice in an epoch", "images missed",
             "steps repeated per kill", "stall p50, s", "p95, s"], rows),
    ]  # fmt: skip


def _publish(runs: Runs) -> list[str]:
    rounds = Counter(run["place"] for run in runs)
    return [
        "## Publishing", "",
        f"{len(runs)} rounds ({_listed(rounds)}) of 16 publishers at once and two garbage "
        f"collections; {sum(run['crashes'] for run in runs)} crashed, "
        "at any instruction or between two writes. Each round must end with dense versions, "
        "`best` on the best, one release per run, all of which verify, and nothing left over.", "",
    ]  # fmt: skip


def _pack(runs: Runs) -> list[str]:
    return [
        "## Packing", "",
        f"{len(runs)} packings, {sum(run['kills'] for run in runs)} SIGKILLs. Each must end with "
        "the fingerprint and files of an undisturbed one.", "",
    ]  # fmt: skip


def _sweep(runs: Runs) -> list[str]:
    kinds = Counter(kill for run in runs for kill in run["kills"])
    return [
        "## Sweeps", "",
        f"Sweeps of 3 trials: {len(runs)}; SIGKILLs: {_listed(kinds)}. Each must end with the "
        "trials, settings, curves and states of an undisturbed one.", "",
    ]  # fmt: skip


def _serve(runs: Runs) -> list[str]:
    rows = []
    for kind in sorted({run["kind"] for run in runs}):
        own = [run for run in runs if run["kind"] == kind]
        bad = sum((Counter(run["not_answered"]) for run in own), Counter[str]())
        rows.append([
            kind, len(own), sum(run["answers"] for run in own),
            ", ".join(f"{count} × {STATUS.get(status, status)}" for status, count in bad.items())
            or "0", f"{max(run['recovered_s'] for run in own):.1f}",
        ])  # fmt: skip
    return [
        "## Serving", "",
        "Two replicas under the load of four clients. Every answer with status 200 must be that "
        "of the release before the disturbance.", "",
        *_table(["disturbance", "times", "requests", "not answered", "longest, s"], rows),
    ]  # fmt: skip


STATUS = {"0": "connection refused or broken"}


def _leak(runs: Runs) -> list[str]:
    rows = [
        [run["quantity"], run["first"], run["median"], run["last"],
         f"{run['per_epoch']:.4f} ± {run['error']:.4f}"]
        for run in runs
    ]  # fmt: skip
    return [
        "## A run of many epochs", "",
        f"{runs[0]['epochs']} epochs with two workers, looked at after each. Growth: least "
        "squares over the last two thirds, ± standard error.", "",
        *_table(["", "first", "median", "last", "growth per epoch"], rows),
    ]  # fmt: skip


SECTIONS: dict[str, Callable[[Runs], list[str]]] = {
    "train": _train, "publish": _publish, "pack": _pack, "sweep": _sweep, "serve": _serve,
    "leak": _leak,
}  # fmt: skip


def _listed(counts: "Counter[str]") -> str:
    return ", ".join(f"{count} × {name}" for name, count in counts.most_common())


def _failures(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl")):
        for run in _read(path):
            if run.get("failure"):
                yield f"- {path.stem} {run['run']}: {run['failure'][:300]}"
