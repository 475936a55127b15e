"""The test split: scored once, by what is about to be released."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.finished_runs import result
from support.releases import released

from effnet_ray import Placement
from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.errors import DatasetError, InputError
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.publish import test_score
from effnet_ray.publish.from_run import release_run
from effnet_ray.publish.test_score import Scoring
from effnet_ray.release.store import ModelStore
from effnet_ray.train import run_record

SMALL = ("--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "4",
         "--workers", "1", "--name", "scored")  # fmt: skip


def never(_: Placement) -> NoReturn:
    raise AssertionError("Ray was asked for")


@pytest.fixture
def tested(photographs: Path, tmp_path: Path) -> Path:
    """The photographs: 12 train, 6 eval, 6 test."""
    out = tmp_path / "tested"
    pack(str(photographs), str(out), Packing(eval_fraction=0.25, test_fraction=0.25))
    return out


@pytest.mark.ray
def test_a_release_says_what_it_scored_once_and_evaluating_it_says_the_same(
    cluster: object, tested: Path, tmp_path: Path
) -> None:
    store = f"{tmp_path}/store"
    command = [*SMALL, "--data", str(tested), "--runs", f"{tmp_path}/runs", "--store", store]
    output = finetune_job(command)
    evaluated = evaluate_job(
        ["--model", "scored@v1", "--store", store, "--data", str(tested), "--split", "test"]
    )
    assert output["test_top1"] == evaluated["eval_top1"]
    release = Path(output["release_uri"])
    metrics = json.loads((release / "metrics.json").read_bytes())
    assert metrics["test"]["test_images"] == evaluated["images"] == 6
    assert metrics["test"]["test_loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-5)
    assert json.loads((release / "release.json").read_bytes())["test_top1"] == output["test_top1"]
    assert f"top-1 {output['test_top1']:.2%}" in (release / "README.md").read_text()
    for shard in (tested / "test").iterdir():
        shard.unlink()
    assert finetune_job(command) == output  # reported: to score it again there would be no images
    elsewhere = finetune_job([*command, "--store", f"{tmp_path}/other"])
    assert elsewhere["test_top1"] == output["test_top1"]  # nor is it for another store
    run = tmp_path / "runs/scored"
    assert not list(run.glob(f"{test_score.CANDIDATE}*"))
    (run / test_score.SCORE_FILE).unlink()
    third = ["--store", f"{tmp_path}/third"]
    with pytest.raises(DatasetError, match=r"is missing: .* --no-test-split"):
        finetune_job([*command, *third])
    assert "test_top1" not in finetune_job([*command, *third, "--no-test-split"])


def again(folder: Path, scoring: Scoring) -> Any:
    """Release the run of `released`, under another name."""
    ended = result(str(folder / "run"), _checkpoint(folder))
    return release_run(ended, ModelStore(str(folder / "store")), name="again", scoring=scoring)


def _checkpoint(folder: Path) -> str:
    (actual,) = (folder / "run" / run_record.CHECKPOINTS).iterdir()
    return str(actual)


def test_without_a_test_split_nothing_is_asked_of_ray(packed: Path, tmp_path: Path) -> None:
    released(tmp_path)
    release = again(tmp_path, Scoring(str(packed), Placement(), never))
    assert "test" not in json.loads((Path(release.uri) / "metrics.json").read_bytes())


def test_what_was_released_is_found_whatever_became_of_its_data(tmp_path: Path) -> None:
    scoring = Scoring(f"{tmp_path}/gone", Placement(), never)
    opened = released(tmp_path)
    store = str(tmp_path / "store")
    actual = release_run(result(str(tmp_path / "run"), _checkpoint(tmp_path)), ModelStore(store),
                        scoring=scoring)  # fmt: skip
    assert actual.uri == opened.uri
    with pytest.raises(InputError, match="gone"):
        again(tmp_path, scoring)


def test_what_cannot_be_scored_is_not_released_and_leaves_nothing(
    tested: Path, tmp_path: Path
) -> None:
    released(tmp_path, limit=None)
    with pytest.raises(DatasetError, match="does not have"):  # the release has other classes
        again(tmp_path, Scoring(str(tested), Placement(), never))
    assert ModelStore(str(tmp_path / "store")).versions("again") == []
    assert not list((tmp_path / "run").glob(f"{test_score.CANDIDATE}*"))
