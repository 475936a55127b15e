"""SIGKILL at every step of publishing and of promoting, and many of both at once."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import fresh_bucket, s3_environment
from support.store_worker import files
from support.stores import Workers, all_files, content, expected_files

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
S3 = [pytest.param(server, marks=pytest.mark.long) for server in ("moto", "rclone")]


@pytest.fixture(params=["disk", *S3])
def workers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    """On each kind of storage in turn; on rclone they must be a single writer."""
    yield from _workers(request, tmp_path)


@pytest.fixture(params=["disk", "moto"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    """On each kind of storage that keeps writers apart."""
    yield from _workers(request, tmp_path)


def _workers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    if request.param == "disk":
        made = Workers(str(tmp_path), False)
        yield made
        made.end()
        return
    with s3_environment(request.getfixturevalue(request.param)):
        made = Workers(fresh_bucket(), request.param == "rclone")
        yield made
        made.end()


EVERY = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
"""Of how many steps one is tried: an odd number, so that even and odd ones are."""


def killed(workers: Workers, at: int, *actions: list[Any]) -> None:
    """Do it in a child that dies at a step."""
    (ended,) = workers.run(list(actions), kill_at=at)
    assert ended == {"signal": signal.SIGKILL}


def steps_of(workers: Workers, *actions: list[Any]) -> int:
    (ended,) = workers.run(list(actions))
    assert "error" not in ended, ended
    steps: int = ended["steps"]
    return steps


@EVERY
def test_a_publisher_killed_at_any_step_leaves_no_partial_release_and_no_gap(
    workers: Workers, every: int
) -> None:
    store = workers.store
    first, second, third = files("first", 0.5), files("second", 0.75), files("third", 0.625)
    store.publish("tried", first, {"run": "first"})
    steps = steps_of(workers, ["publish", "tried", "second", 0.75])
    assert steps >= 20
    for at in range(0, steps, every):
        name = f"m{at}"
        store.publish(name, first, {"run": "first"})
        killed(workers, at, ["publish", name, "second", 0.75])
        seen = store.versions(name)
        assert seen in ([1], [1, 2]), at
        assert [content(store, name, version) for version in seen] == [first, second][: len(seen)]
        assert store.find(f"{name}@best").version in seen
        if at % 2:  # the same run again: it finds its number
            assert store.publish(name, second, {"run": "second"}).version == 2
            ends = [first, second]
        else:  # another one: what was claimed before is finished, the numbers are dense
            store.publish(name, third, {"run": "third"})
            ends = [first, second, third] if len(store.versions(name)) == 3 else [first, third]
        for version, expected in enumerate(ends, 1):
            assert content(store, name, version) == expected
        assert store.versions(name) == list(range(1, len(ends) + 1))
        store.gc(stale_after_s=-60)
        assert all_files(store, name) == expected_files(len(ends), "best"), at
        scores = [json.loads(each["metrics.json"])["best"]["eval_top1"] for each in ends]
        assert store.find(f"{name}@best").version == scores.index(max(scores)) + 1


@EVERY
def test_what_a_dead_publisher_claimed_is_finished_or_buried_by_gc(
    workers: Workers, every: int
) -> None:
    store = workers.store
    outcomes = set()
    store.publish("before", files("first", 0.5), {"run": "first"})  # the store's own folder
    steps = steps_of(workers, ["publish", "tried", "first", 0.5])
    for at in range(0, steps, every):
        name = f"g{at}"
        killed(workers, at, ["publish", name, "first", 0.5])
        store.gc(stale_after_s=-60)
        seen = store.versions(name)
        outcomes.add(tuple(seen))
        assert [content(store, name, version) for version in seen] == [files("first", 0.5)][
            : len(seen)
        ]
        assert all_files(store, name) - expected_files(1, "best") == set(), at
        if not seen:
            assert all_files(store, name) == set(), at
    assert outcomes == {(), (1,)}


@EVERY
def test_a_promotion_killed_at_any_step_has_happened_or_not(workers: Workers, every: int) -> None:
    store = workers.store

    def model(name: str) -> None:
        store.publish(name, files("first", 0.5), {"run": "first"})
        store.publish(name, files("second", 0.75), {"run": "second"})
        store.promote(f"{name}@v1", "champion")

    model("tried")
    steps = steps_of(workers, ["promote", "tried@v2", "champion"])
    for at in range(0, steps, every):
        name = f"m{at}"
        model(name)
        killed(workers, at, ["promote", f"{name}@v2", "champion"])
        assert store.find(f"{name}@champion").version in (1, 2)
        store.promote(f"{name}@v2", "champion")
        moves = store.history(name, "champion")
        assert [(move.previous, move.version) for move in moves] == [(None, 1), (1, 2)]
        store.gc(stale_after_s=-60)
        assert all_files(store, name) == expected_files(2, "best", "champion")


@pytest.mark.parametrize("processes", [6, pytest.param(16, marks=pytest.mark.long)])
def test_of_many_publishers_and_promoters_at_once_each_number_and_move_has_one(
    shared: Workers, processes: int
) -> None:
    runs = [f"run {number}" for number in range(processes)]
    jobs = [[["promote own", "pets", f"{run} {i}", "champion"] for i in (0, 1)] for run in runs]
    output = shared.run(*jobs)
    assert [ended.get("error") for ended in output] == [None] * processes
    made = {
        f"{run} {i}": tuple(ended["said"][i])
        for run, ended in zip(runs, output, strict=True)
        for i in (0, 1)
    }
    store = shared.store
    assert sorted(version for version, _ in made.values()) == list(range(1, 2 * processes + 1))
    assert store.versions("pets") == list(range(1, 2 * processes + 1))
    for run, (version, _) in made.items():
        assert content(store, "pets", version) == files(run, 0.5)
    moves = store.history("pets", "champion")
    assert sorted(move.id for move in moves) == sorted(move for _, move in made.values())
    assert [move.previous for move in moves] == [None, *(move.version for move in moves[:-1])]
    assert store.find("pets@champion").version == moves[-1].version
    assert len(store.history("pets", "best")) == 1  # all are equally good
    store.gc(stale_after_s=-60)
    assert all_files(store, "pets") == expected_files(2 * processes, "best", "champion")


def test_of_many_who_publish_the_same_run_at_once_there_is_one_release(shared: Workers) -> None:
    output = shared.run(*[[["publish", "pets", "same", 0.5]]] * 6)
    assert [ended.get("said") for ended in output] == [[1]] * 6, output
    assert content(shared.store, "pets", 1) == files("same", 0.5)
    shared.store.gc(stale_after_s=-60)
    assert all_files(shared.store, "pets") == expected_files(1, "best")


def test_helpers_and_the_owner_of_a_number_write_the_same(shared: Workers) -> None:
    jobs = [[["publish", "pets", f"run {number}", 0.5]] for number in range(6)]
    output = shared.run(*jobs, helped_after_s=0)
    assert sorted(ended.get("said", [0])[0] for ended in output) == [1, 2, 3, 4, 5, 6], output
    for number, ended in enumerate(output):
        version = ended["said"][0]
        assert content(shared.store, "pets", version) == files(f"run {number}", 0.5)
