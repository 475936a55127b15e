"""The laws of training in plain processes: gloo and threads in place of Ray.

`test_laws` shows that Ray gives the same bits.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.laws import RECIPE, STEPS
from support.plain_run import PlainRun, plain_run
from support.runs import assert_once_each, audit, eval_images, losses, planned, weights

from effnet_ray import Placement, Recipe
from effnet_ray.publish.from_run import release_run
from effnet_ray.schema import from_dict
from effnet_ray.train import checkpoint
from effnet_ray.train.events import EpochDone, WorkersStarted
from effnet_ray.train.run_record import Result

Runs = Callable[[int], PlainRun]


@pytest.fixture(scope="module")
def plain(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The undisturbed run on N workers; made once for each N."""
    folder = str(tmp_path_factory.mktemp("plain"))
    runs: dict[int, PlainRun] = {}

    def run(workers: int) -> PlainRun:
        if workers not in runs:
            runs[workers] = plain_run(RECIPE, digits, folder, f"w{workers}", workers=workers)
        return runs[workers]

    return run


def result_of(run: PlainRun) -> Result:
    """The result of a run that came to its end."""
    assert run.result is not None
    return run.result


def newest_files(result: Result) -> dict[str, bytes]:
    """The files of the newest checkpoint, and the history in its record."""
    newest = checkpoint.newest(f"{result.run_uri}/checkpoints")
    assert newest is not None
    history = json.loads((Path(newest.uri) / checkpoint.RECORD).read_bytes())["history"]
    files = {name: newest.read(name) for name in newest.files}
    return files | {"history": json.dumps(history).encode()}


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_train_uses_every_image_once_an_epoch(plain: Runs, digits: str, workers: int) -> None:
    assert_once_each(result_of(plain(workers)), planned(digits))


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_the_order_is_planned_not_placed(plain: Runs, workers: int) -> None:
    assert audit(result_of(plain(workers))) == audit(result_of(plain(1)))


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_placement_is_not_a_hyper_parameter(plain: Runs, workers: int) -> None:
    assert losses(result_of(plain(workers))) == pytest.approx(
        losses(result_of(plain(1))), abs=1e-4
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_eval_counts_every_image_once_on_any_number_of_workers(plain: Runs, workers: int) -> None:
    assert eval_images(result_of(plain(workers))) == [44, 44]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_killed_run_resumes_bit_equal_and_times_what_it_did_itself(
    plain: Runs, digits: str, tmp_path: Path, workers: int
) -> None:
    runs, straight = str(tmp_path), result_of(plain(workers))
    killed = {"workers": workers, "kill_after_steps": STEPS + 5}
    plain_run(RECIPE, digits, runs, "killed", **killed)  # type: ignore[arg-type]
    run = plain_run(RECIPE, digits, runs, "killed", workers=workers)
    resumed = result_of(run)
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


def test_resizing_from_1_to_2_to_1_worker_mid_epoch_changes_nothing(
    plain: Runs, digits: str, tmp_path: Path
) -> None:
    def go(workers: int, steps: int | None = None) -> PlainRun:
        placement = Placement(workers=str(workers), audit=True, checkpoint_every=1)
        return plain_run(
            RECIPE, digits, str(tmp_path), "resized",
            workers=workers, placement=placement, kill_after_steps=steps,
        )  # fmt: skip

    go(1, 4)
    go(2, STEPS)
    resized, straight = result_of(go(1)), result_of(plain(1))
    assert STEPS < resized.resumed_from_step < 2 * STEPS
    assert audit(resized) == audit(straight)
    assert_once_each(resized, planned(digits))
    assert losses(resized) == pytest.approx(losses(straight), abs=1e-4)
    names = [path.name for path in (tmp_path / "resized/audit").iterdir()]
    assert len({name.split("-")[3] for name in names}) == 2  # both of two workers took steps


def test_a_released_recipe_run_again_gives_the_same_weights(
    digits: str, tmp_path: Path, weights_mirror: str
) -> None:
    """And the release holds the average where that was better."""
    recipe = replace(RECIPE, weights="ns", ema_decay=0.5, micro_batch=None, head_cache=False)
    released = []
    for name in ("first", "again"):
        run = plain_run(recipe, digits, str(tmp_path), name, workers=2, mirror=weights_mirror)
        result = result_of(run)
        release = release_run(result, str(tmp_path / "store"))
        released.append((Path(release.uri) / "model.safetensors").read_bytes())
        recipe = from_dict(Recipe, json.loads((Path(release.uri) / "recipe.json").read_text()))
    assert released[0] == released[1] and recipe.micro_batch == 4 and recipe.head_epochs == 1
    metrics = json.loads((Path(release.uri) / "metrics.json").read_text())
    file = checkpoint.AVERAGED if metrics["best"]["averaged"] else checkpoint.WEIGHTS
    assert released[1] == (Path(result.checkpoint) / file).read_bytes()


def test_each_epoch_is_reported(plain: Runs) -> None:
    reports = plain(2).reports
    assert [report["epoch"] for report in reports] == [0, 1]
    assert reports[-1]["reached"] == 1


def test_weights_depend_on_the_data(plain: Runs) -> None:
    """What compares weights above would see a difference."""
    assert weights(result_of(plain(1))) == weights(result_of(plain(1)))
    assert newest_files(result_of(plain(1))) != newest_files(result_of(plain(2)))
