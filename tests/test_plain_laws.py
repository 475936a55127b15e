"""The laws of training in plain processes: gloo and threads in place of Ray.

`test_laws` shows that Ray gives the same bits.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.corrupt import corrupted_copy
from support.laws import RECIPE, STEPS
from support.plain_run import PlainRun, plain_run
from support.runs import assert_once_each, audit, eval_images, losses, planned, weights

from effnet_ray import Placement, Recipe
from effnet_ray.errors import TrainingError
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format import layout
from effnet_ray.schema import from_dict
from effnet_ray.train import checkpoint
from effnet_ray.train.events import CheckpointSkipped, EpochDone, WorkersStarted
from effnet_ray.train.run_record import Result

pytestmark = pytest.mark.heavy

FOUR = pytest.param(4, marks=pytest.mark.long)
"""A worker for each lane."""
Runs = Callable[[int], PlainRun]


def newest_files(result: Result) -> dict[str, bytes]:
    """The files of the newest checkpoint, and the history in its record."""
    newest = checkpoint.newest(f"{result.run_uri}/checkpoints")
    assert newest is not None
    history = json.loads((Path(newest.uri) / checkpoint.RECORD).read_bytes())["history"]
    files = {name: newest.read(name) for name in newest.files}
    return files | {"history": json.dumps(history).encode()}


@pytest.mark.parametrize("workers", [1, 2, 3, FOUR])
def test_train_uses_every_image_once_an_epoch(
    undisturbed: Runs, digits: str, workers: int
) -> None:
    assert_once_each(undisturbed(workers).finished, planned(digits))


@pytest.mark.parametrize("workers", [2, 3, FOUR])
def test_the_order_is_planned_not_placed(undisturbed: Runs, workers: int) -> None:
    assert audit(undisturbed(workers).finished) == audit(undisturbed(1).finished)


@pytest.mark.parametrize("workers", [2, 3, FOUR])
def test_placement_is_not_a_hyper_parameter(undisturbed: Runs, workers: int) -> None:
    assert losses(undisturbed(workers).finished) == pytest.approx(
        losses(undisturbed(1).finished), abs=1e-4
    )


@pytest.mark.parametrize("workers", [1, 2, 3, FOUR])
def test_eval_counts_every_image_once_on_any_number_of_workers(
    undisturbed: Runs, workers: int
) -> None:
    assert eval_images(undisturbed(workers).finished) == [44, 44]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long), 3])
def test_a_killed_run_resumes_bit_equal_and_times_what_it_did_itself(
    undisturbed: Runs, digits: str, tmp_path: Path, workers: int
) -> None:
    runs, straight = str(tmp_path), undisturbed(workers).finished
    killed = {"workers": workers, "kill_after_steps": STEPS + 5}
    plain_run(RECIPE, digits, runs, "killed", **killed)  # type: ignore[arg-type]
    run = plain_run(RECIPE, digits, runs, "killed", workers=workers)
    resumed = run.finished
    assert newest_files(resumed) == newest_files(straight)
    assert audit(resumed) == audit(straight)
    assert_once_each(resumed, planned(digits))
    (started,) = [event for event in run.events if isinstance(event, WorkersStarted)]
    assert STEPS + 2 <= started.step < STEPS + 5
    assert resumed.resumed_from_step == started.step
    (done,) = [event for event in run.events if isinstance(event, EpochDone)]
    assert done.train_images == 44 - RECIPE.batch_size * (started.step - STEPS)
    assert done.report.train_images == 44
    assert resumed.train_images_per_s == pytest.approx(done.images_per_s)


def test_a_damaged_checkpoint_is_reported_and_without_another_a_run_does_not_start_again(
    digits: str, tmp_path: Path
) -> None:
    def run(kill_after_steps: int | None) -> PlainRun:
        placement = Placement(workers="1", checkpoint_every=1)
        return plain_run(
            replace(RECIPE, epochs=1), digits, str(tmp_path), "damaged",
            placement=placement, kill_after_steps=kill_after_steps,
        )  # fmt: skip

    run(5)
    newest, *older = sorted((tmp_path / "damaged/checkpoints").iterdir(), reverse=True)
    assert older
    (newest / layout.WEIGHTS).write_bytes(b"")
    (skipped,) = [e for e in run(None).events if isinstance(e, CheckpointSkipped)]
    assert str(newest) in skipped.reason
    (tmp_path / "damaged/result.json").unlink()
    for folder in (tmp_path / "damaged/checkpoints").iterdir():
        (folder / layout.WEIGHTS).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"no checkpoint of this run can be used .*--name"):
        run(None)


def test_resizing_from_1_to_2_to_1_worker_mid_epoch_changes_nothing(
    undisturbed: Runs, digits: str, tmp_path: Path
) -> None:
    def go(workers: int, steps: int | None = None) -> PlainRun:
        placement = Placement(workers=str(workers), audit=True, checkpoint_every=1)
        return plain_run(
            RECIPE, digits, str(tmp_path), "resized",
            workers=workers, placement=placement, kill_after_steps=steps,
        )  # fmt: skip

    go(1, 4)
    go(2, STEPS)
    resized, straight = go(1).finished, undisturbed(1).finished
    assert STEPS < resized.resumed_from_step < 2 * STEPS
    assert audit(resized) == audit(straight)
    assert_once_each(resized, planned(digits))
    assert losses(resized) == pytest.approx(losses(straight), abs=1e-4)
    names = [path.name for path in (tmp_path / "resized/audit").glob("*.parquet")]
    assert len({name.split("-")[3] for name in names}) == 2  # both of two workers took steps


def test_a_released_recipe_run_again_gives_the_same_weights(
    digits: str, tmp_path: Path, weights_mirror: str
) -> None:
    """And the release holds the average where that was better."""
    recipe = replace(RECIPE, weights="ns", ema_decay=0.5, micro_batch=None, head_cache=False)
    released = []
    for name in ("first", "again"):
        run = plain_run(recipe, digits, str(tmp_path), name, workers=2, mirror=weights_mirror)
        result = run.finished
        release = release_run(result, ModelStore(str(tmp_path / "store")))
        released.append((Path(release.uri) / "model.safetensors").read_bytes())
        recipe = from_dict(Recipe, json.loads((Path(release.uri) / "recipe.json").read_text()))
    assert released[0] == released[1] and recipe.micro_batch == 4 and recipe.head_epochs == 1
    metrics = json.loads((Path(release.uri) / "metrics.json").read_text())
    file = checkpoint.AVERAGED if metrics["best"]["averaged"] else layout.WEIGHTS
    assert released[1] == (Path(result.checkpoint) / file).read_bytes()


def test_with_every_option_on_resuming_equals_never_stopping_on_three_workers(
    digits: str, tmp_path: Path, weights_mirror: str
) -> None:
    """Killed in the second phase: another optimizer, the average, augmented and mixed images."""
    recipe = replace(
        RECIPE, weights="ns", head_epochs=1, head_cache=False, unfreeze="stage:6", opt="lamb",
        layer_decay=0.7, clip_grad=1.0, ema_decay=0.9, aa="rand", mixup=0.2, cutmix=1.0,
        reprob=0.5, class_weights="sqrt", balance=1.0, progressive=0.7, image_size=48,
    )  # fmt: skip

    def go(name: str, kill_after_steps: int | None = None) -> PlainRun:
        return plain_run(
            recipe, digits, str(tmp_path), name,
            workers=3, mirror=weights_mirror, kill_after_steps=kill_after_steps,
        )  # fmt: skip

    go("killed", STEPS + 5)
    killed, straight = go("killed").finished, go("straight").finished
    assert STEPS < killed.resumed_from_step < 2 * STEPS
    assert newest_files(killed) == newest_files(straight)
    assert audit(killed) == audit(straight)
    assert sum(sum(used.values()) for used in audit(killed).values()) == 2 * 44


def test_a_corrupt_image_is_quarantined_counted_and_named(digits: str, tmp_path: Path) -> None:
    (image,) = corrupted_copy(Path(digits), tmp_path / "data", [5])
    recipe = replace(RECIPE, epochs=1)
    run = plain_run(recipe, str(tmp_path / "data"), str(tmp_path), "bad", workers=2)
    assert run.finished.quarantined == 1
    assert sum(images.get(image, 0) for images in audit(run.finished).values()) == 0
    named = pq.read_table(tmp_path / "bad/quarantine").to_pylist()
    assert [row["id"] for row in named] == [image]


def test_a_damaged_shard_ends_a_run_in_one_sentence(digits: str, tmp_path: Path) -> None:
    """Its manifest is true of a file that has a row too few."""
    corrupted_copy(Path(digits), tmp_path / "data", [], rows=30)
    with pytest.raises(TrainingError) as failed:
        plain_run(RECIPE, str(tmp_path / "data"), str(tmp_path), "short")
    sentence = str(failed.value)
    assert re.search(r"failed: shard \S+ has 30 rows in row group 0", sentence)
    assert "\n" not in sentence


def test_each_epoch_is_reported(undisturbed: Runs) -> None:
    reports = undisturbed(2).reports
    assert [report["epoch"] for report in reports] == [0, 1]
    assert reports[-1]["reached"] == 1


def test_weights_depend_on_the_data(undisturbed: Runs) -> None:
    """What compares weights above would see a difference."""
    assert weights(undisturbed(1).finished) == weights(undisturbed(1).finished)
    assert newest_files(undisturbed(1).finished) != newest_files(undisturbed(2).finished)
