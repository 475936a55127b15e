"""Publishers that crash anywhere, while others publish, delete and collect garbage."""

import json
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.servers import fresh_bucket, moto_server, s3_environment
from support.store_worker import files
from support.stores import Workers, content

from effnet_ray.release import maintenance
from effnet_ray.release.names import Release

MODEL = "pets"
PUBLISHERS = 16
BEFORE = {"deleted": 0.0, "before": 0.001}
"""Runs whose releases, v1 and v2, are there before: v1 is deleted meanwhile; with their top-1."""
STALE_S = 1.0
"""For `gc`, which waits a day by default: here it completes what running publishers claimed."""
SECONDS = {"disk": 0.15, "moto": 2.0}
"""Upper bound of the seconds before a crash, by place. Chosen, not measured."""


def run_all(runs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Rounds of sixteen publishers, two `gc` and a deletion, of which half are to crash.

    Yields what became of each.
    """
    for number in sorted(set(range(runs)) - set(done)):
        kind = ("disk", "moto")[number % 2]
        folder = scratch / f"round-{number}"
        failure, crashes = "", 0
        with _workers(kind, folder) as workers:
            try:
                crashes = _round(workers, kind, random.Random(number))
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
        yield {"run": number, "place": kind, "failure": failure, "crashes": crashes}
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _workers(kind: str, folder: Path) -> Iterator[Workers]:
    if kind == "disk":
        workers = Workers(str(folder), False)
        yield workers
        workers.end()
        return
    with moto_server() as endpoint, s3_environment(endpoint):
        workers = Workers(fresh_bucket(), False)
        yield workers
        workers.end()


def _round(workers: Workers, kind: str, draws: random.Random) -> int:
    """Crash, clean up and check; returns the crashes. Raises AssertionError."""
    tops = {f"run {i}": draws.randrange(1000) / 1000 for i in range(PUBLISHERS)}
    (alone,) = workers.run([["publish", "alone", "first", 0.5]])
    workers.run([["publish", MODEL, run, top] for run, top in BEFORE.items()])
    seconds = SECONDS[kind]
    jobs = [
        _crashing([["publish", MODEL, run, top]], alone["steps"], seconds, draws)
        for run, top in tops.items()
    ]
    actions: list[list[list[Any]]] = [
        [["gc", STALE_S], ["gc", STALE_S]],
        [["gc", STALE_S]],
        [["delete", f"{MODEL}@v1"]],
    ]
    jobs += [_crashing(do, alone["steps"], seconds, draws) for do in actions]
    crashed = _ended(workers.run_jobs(jobs))
    # Everybody again, as people do: whoever had published finds the release.
    again = workers.run_jobs([{"do": job["do"]} for job in jobs])
    assert not _ended(again)
    _check(workers, tops | BEFORE)
    return crashed


def _crashing(
    actions: list[list[Any]], steps: int, seconds: float, draws: random.Random
) -> dict[str, Any]:
    """A job, perhaps with one of two crashes: between two writes, or at any instruction."""
    job: dict[str, Any] = {"do": actions}
    match draws.randrange(4):
        case 0:
            job["kill_at"] = draws.randrange(steps)
        case 1:
            job["kill_after_s"] = draws.uniform(0.001, seconds)
    return job


def _ended(answers: Sequence[dict[str, Any]]) -> int:
    """How many were killed; raises AssertionError for an error."""
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert not errors, errors
    killed = [answer["signal"] for answer in answers if answer["signal"]]
    assert set(killed) <= {signal.SIGKILL, signal.SIGALRM}, killed
    return len(killed)


def _check(workers: Workers, tops: dict[str, float]) -> None:
    """Versions are dense, `best` is the best, all releases verify, nothing is left over."""
    store = workers.store
    store.gc(stale_after_s=-60)
    folder = store.model_folder(MODEL)
    versions = folder.versions
    assert 1 in folder.deleted, "not deleted"  # others were given up by `gc`
    assert sorted([*versions, *folder.deleted]) == list(range(1, folder.next)), "not dense"
    runs = {}
    for version in versions:
        maintenance.verify(folder, version)
        runs[version] = json.loads(content(store, MODEL, version)["config.json"])["run"]
        assert content(store, MODEL, version) == files(runs[version], tops[runs[version]])
    assert len(set(runs.values())) == len(runs), "a run has two releases"
    best: Release = store.find(f"{MODEL}@best")
    assert tops[runs[best.version]] == max(tops[run] for run in runs.values()), "best is wrong"
    assert not [path for path in folder.files if "/staging/" in path or ".partial" in path]
