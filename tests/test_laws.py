"""The laws on real Ray: the same bits as in plain processes, kills, failures."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load
from support.corrupt import corrupted_copy
from support.faults import QUICK, Faults, Proxy
from support.laws import RECIPE, STEPS, await_step, await_workers
from support.plain_run import PlainRun
from support.runs import assert_once_each, audit, eval_images, losses, planned, weights

from effnet_ray import Placement, finetune, storage
from effnet_ray.errors import TrainingError
from effnet_ray.release_format import layout
from effnet_ray.train import checkpoint, events

pytestmark = pytest.mark.ray

BUCKET = "s3://laws"
"""Where `cluster` reads and writes through `cluster_proxy`."""


def test_ray_on_faulty_s3_gives_the_bits_of_plain_processes_on_disk(
    cluster: None, cluster_proxy: Proxy, undisturbed: Callable[[int], PlainRun], digits: str
) -> None:
    """A fifth of all requests of the driver, its workers and decode tasks fail."""
    for path in storage.sizes(digits):
        storage.upload(Path(digits) / path, f"{BUCKET}/data/{path}")
    cluster_proxy.faults = faults = Faults(QUICK)
    placement = Placement(workers="3", audit=True, checkpoint_every=2)
    result = finetune(RECIPE, placement, f"{BUCKET}/data", runs=f"{BUCKET}/runs", name="s3")
    cluster_proxy.faults = Faults()
    assert faults.made >= 30
    plain = undisturbed(3).finished
    assert weights(result) == weights(plain)
    assert audit(result) == audit(plain) and losses(result) == losses(plain)
    assert eval_images(result) == [44, 44]
    assert_once_each(result, planned(digits))


def kill_a_worker_at(step: int, audit_folder: Path) -> threading.Thread:
    """SIGKILL one Ray Train worker of this session as soon as `step` has begun."""

    def watch() -> None:
        worker = await_workers(psutil.Process())[-1]  # found early: looking takes some steps
        await_step(audit_folder, step)
        worker.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_resume_after_a_killed_worker_equals_never_stopping(
    cluster: None, undisturbed: Callable[[int], PlainRun], digits: str, tmp_path: Path
) -> None:
    killer = kill_a_worker_at(STEPS + 1, tmp_path / "killed" / "audit")
    placement = Placement(workers="2", audit=True, checkpoint_every=2)
    result = finetune(RECIPE, placement, digits, runs=str(tmp_path), name="killed")
    killer.join()
    assert 0 < result.resumed_from_step < 2 * STEPS
    assert weights(result) == weights(undisturbed(2).finished)
    assert audit(result) == audit(undisturbed(2).finished)
    assert_once_each(result, planned(digits))


def test_a_run_outlives_the_actor_that_carries_its_events(
    cluster: None, undisturbed: Callable[[int], PlainRun], digits: str, tmp_path: Path
) -> None:
    """No worker starts again for it."""
    killed, starts, steps = [], list[events.Event](), set[int]()

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.WorkersStarted):
            starts.append(event)
            channels = processes("ray::EventChannel")
            killed.extend(channels)
            for channel in channels:
                channel.kill()
        if isinstance(event, events.EpochDone):
            steps.add(event.report.step)

    result = finetune(
        RECIPE, Placement(workers="2", max_failures=0, audit=True), digits,
        runs=str(tmp_path), name="unheard", on_event=on_event,
    )  # fmt: skip
    assert killed and len(starts) == 1
    assert 2 * STEPS in steps
    assert weights(result) == weights(undisturbed(2).finished)


def processes(title: str) -> list[psutil.Process]:
    """This session's processes whose title begins so."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "".join(child.cmdline()).startswith(title)]


def test_too_many_corrupt_images_end_a_run_in_one_sentence(
    cluster: None, digits: str, tmp_path: Path
) -> None:
    data, starts = tmp_path / "data", []
    corrupt = corrupted_copy(Path(digits), data, list(range(20)))

    def record_event(event: events.Event) -> None:
        starts.extend([event] if isinstance(event, events.WorkersStarted) else [])

    with pytest.raises(TrainingError) as refused:
        finetune(
            RECIPE, Placement(workers="2"), str(data),
            runs=str(tmp_path / "runs"), name="bad", on_event=record_event,
        )  # fmt: skip
    sentence = str(refused.value)
    assert re.search(r"'bad' failed: \d+ of 44 train images cannot be read", sentence)
    assert "max-bad-fraction" in sentence and "/bad/quarantine" in sentence
    assert "\n" not in sentence and len(starts) == 1
    named = pq.read_table(tmp_path / "runs/bad/quarantine").to_pylist()
    assert len(named) >= 2 and {row["id"] for row in named} <= set(corrupt)
    assert any(f"{row['path']}: {row['reason']}" in sentence for row in named)


@pytest.mark.long
def test_a_run_that_explodes_goes_back_once_and_ends_in_one_sentence(
    cluster: None, digits: str, tmp_path: Path
) -> None:
    starts: list[events.Event] = []

    def record_event(event: events.Event) -> None:
        starts.extend([event] if isinstance(event, events.WorkersStarted) else [])

    exploding = replace(RECIPE, lr=1e30, max_skips=1, warmup_epochs=0)
    with pytest.raises(TrainingError) as refused:
        finetune(
            exploding, Placement(workers="2", checkpoint_every=1), digits,
            runs=str(tmp_path), name="exploding", on_event=record_event,
        )  # fmt: skip
    sentence = str(refused.value)
    assert re.search(r"not finite at step \d, after 1 skipped step \(adamw", sentence)
    assert "\n" not in sentence and len(starts) == 2
    for folder in storage.folders(str(tmp_path / "exploding/checkpoints")):
        kept = checkpoint.open_checkpoint(str(tmp_path / "exploding/checkpoints" / folder))
        actual = load(kept.read(layout.WEIGHTS))
        assert all(bool(tensor.isfinite().all()) for tensor in actual.values())


@pytest.mark.long
def test_a_damaged_shard_ends_a_run_in_one_sentence(
    cluster: None, digits: str, tmp_path: Path
) -> None:
    """Its manifest is true of a file that has a row too few."""
    data = tmp_path / "data"
    corrupted_copy(Path(digits), data, [], rows=30)
    with pytest.raises(TrainingError) as refused:
        finetune(
            RECIPE, Placement(workers="1", max_failures=0), str(data),
            runs=str(tmp_path / "runs"), name="short",
        )  # fmt: skip
    sentence = str(refused.value)
    assert re.search(r"failed: shard \S+ has 30 rows in row group 0", sentence)
    assert "\n" not in sentence
