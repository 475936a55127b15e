"""The laws on real Ray: the same bits as plain processes (`test_plain_laws`), real kills."""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load
from support.laws import RECIPE, STEPS, await_step, await_workers
from support.plain_run import plain_run
from support.runs import assert_once_each, audit, eval_images, losses, planned, weights

from effnet_ray import Placement, finetune, storage
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import TrainingError
from effnet_ray.train import checkpoint, events
from effnet_ray.train.run_record import Result

pytestmark = pytest.mark.ray


def test_ray_gives_the_bits_of_plain_processes(
    undisturbed: Callable[[int], Result], digits: str, tmp_path: Path
) -> None:
    on_ray, plain = undisturbed(2), plain_run(RECIPE, digits, str(tmp_path), "plain", workers=2)
    assert plain.result is not None
    assert weights(on_ray) == weights(plain.result)
    assert audit(on_ray) == audit(plain.result) and losses(on_ray) == losses(plain.result)
    assert eval_images(on_ray) == [44, 44]
    assert_once_each(on_ray, planned(digits))


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
    undisturbed: Callable[[int], Result], digits: str, tmp_path: Path
) -> None:
    killer = kill_a_worker_at(STEPS + 1, tmp_path / "killed" / "audit")
    placement = Placement(workers="2", audit=True, checkpoint_every=2)
    result = finetune(RECIPE, placement, digits, runs=str(tmp_path), name="killed")
    killer.join()
    assert 0 < result.resumed_from_step < 2 * STEPS
    assert weights(result) == weights(undisturbed(2))
    assert audit(result) == audit(undisturbed(2))
    assert_once_each(result, planned(digits))


def test_with_every_dial_on_resuming_equals_never_stopping_on_three_workers(
    cluster: None, digits: str, tmp_path: Path, weights_mirror: str
) -> None:
    """Killed in the second phase: another optimizer, the average, augmented and mixed images."""
    recipe = replace(
        RECIPE, weights="ns", head_epochs=1, unfreeze="stage:6", layer_decay=0.7, opt="lamb",
        clip_grad=1.0, ema_decay=0.9, aa="rand", mixup=0.2, cutmix=1.0, reprob=0.5,
        class_weights="sqrt", balance=1.0, progressive=0.7, image_size=48,
    )  # fmt: skip
    placement = Placement(workers="3", audit=True, checkpoint_every=2)

    def go(name: str) -> Result:
        return finetune(
            recipe, placement, digits, runs=str(tmp_path), name=name, mirror=weights_mirror
        )

    killer = kill_a_worker_at(STEPS + 3, tmp_path / "killed" / "audit")
    killed = go("killed")
    killer.join()
    assert STEPS <= killed.resumed_from_step < 2 * STEPS
    straight = go("straight")
    assert weights(killed) == weights(straight) and losses(killed) == losses(straight)
    assert audit(killed) == audit(straight)
    assert sum(sum(used.values()) for used in audit(killed).values()) == 2 * 44


def test_three_workers_on_s3_equal_two_on_disk(
    undisturbed: Callable[[int], Result], digits: str, rclone_bucket: str
) -> None:
    for path in storage.sizes(digits):
        storage.upload(Path(digits) / path, storage.join(rclone_bucket, "data", path))
    placement = Placement(workers="3", audit=True)
    result = finetune(
        RECIPE, placement, f"{rclone_bucket}/data", runs=f"{rclone_bucket}/runs", name="s3"
    )
    assert audit(result) == audit(undisturbed(2))
    assert losses(result) == pytest.approx(losses(undisturbed(2)), abs=1e-4)


def test_a_corrupt_image_is_quarantined_counted_and_named(
    cluster: None, digits: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (image,) = corrupted_copy(Path(digits), data, [5])
    placement = Placement(workers="2", audit=True)
    recipe = replace(RECIPE, epochs=1)
    result = finetune(recipe, placement, str(data), runs=str(tmp_path / "runs"), name="bad")
    assert result.quarantined == 1
    assert sum(images.get(image, 0) for images in audit(result).values()) == 0
    named = pq.read_table(tmp_path / "runs/bad/quarantine").to_pylist()
    assert [row["id"] for row in named] == [image]


def test_too_many_corrupt_images_end_a_run_in_one_sentence(
    cluster: None, digits: str, tmp_path: Path
) -> None:
    data, starts = tmp_path / "data", []
    corrupt = corrupted_copy(Path(digits), data, list(range(20)))

    def hear(event: events.Event) -> None:
        starts.extend([event] if isinstance(event, events.WorkersStarted) else [])

    with pytest.raises(TrainingError) as refused:
        finetune(
            RECIPE, Placement(workers="2"), str(data),
            runs=str(tmp_path / "runs"), name="bad", on_event=hear,
        )  # fmt: skip
    sentence = str(refused.value)
    assert re.search(r"'bad' failed: \d+ of 44 train images cannot be read", sentence)
    assert "max-bad-fraction" in sentence and "/bad/quarantine" in sentence
    assert "\n" not in sentence and len(starts) == 1
    named = pq.read_table(tmp_path / "runs/bad/quarantine").to_pylist()
    assert len(named) >= 2 and {row["id"] for row in named} <= set(corrupt)
    assert any(f"{row['path']}: {row['reason']}" in sentence for row in named)


def test_a_run_that_explodes_goes_back_once_and_ends_in_one_sentence(
    cluster: None, digits: str, tmp_path: Path
) -> None:
    starts: list[events.Event] = []

    def hear(event: events.Event) -> None:
        starts.extend([event] if isinstance(event, events.WorkersStarted) else [])

    exploding = replace(RECIPE, lr=1e30, max_skips=1, warmup_epochs=0)
    with pytest.raises(TrainingError) as refused:
        finetune(
            exploding, Placement(workers="2", checkpoint_every=1), digits,
            runs=str(tmp_path), name="exploding", on_event=hear,
        )  # fmt: skip
    sentence = str(refused.value)
    assert re.search(r"not finite at step \d, after 1 skipped step \(adamw", sentence)
    assert "\n" not in sentence and len(starts) == 2
    for folder in storage.folders(str(tmp_path / "exploding/checkpoints")):
        kept = checkpoint.open_checkpoint(str(tmp_path / "exploding/checkpoints" / folder))
        found = load(kept.read(checkpoint.WEIGHTS))
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())


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


def corrupted_copy(
    digits: Path, data: Path, places: list[int], rows: int | None = None
) -> list[int]:
    """A data set, its manifest true of its bytes, with train images that do not decode; their ids.

    `rows` shortens the first row group to so many, which the manifest does not say.
    """
    manifest = manifests.load(str(digits))
    for path in storage.sizes(str(digits)):
        storage.upload(digits / path, str(data / path))
    shard = manifest.splits["train"][0]
    table = pq.read_table(data / shard.path)
    records = table.to_pylist()
    for place in places:
        records[place]["image"]["bytes"] = b"\x89PNG" + bytes(40)
        digest = hashlib.sha256(records[place]["image"]["bytes"])
        records[place]["digest"] = digest.hexdigest()
    altered = type(table).from_pylist(records, schema=table.schema)
    with pq.ParquetWriter(data / shard.path, table.schema) as writer:
        first = 0
        for images in shard.row_groups:
            kept = min(images, rows or images) if first == 0 else images
            writer.write_table(altered.slice(first, kept), row_group_size=images)
            first += images
    raw = (data / shard.path).read_bytes()
    changed = replace(shard, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    splits = {**manifest.splits, "train": (changed, *manifest.splits["train"][1:])}
    manifests.write(replace(manifest, splits=splits), str(data))
    return [int(records[place]["id"]) for place in places]
