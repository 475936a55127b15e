"""The mean of several checkpoints is released only where the eval split says that it is better."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from support.laws import RECIPE
from support.plain_run import plain_run
from torch import Tensor

from effnet_ray import Placement, storage
from effnet_ray.cli.main import main
from effnet_ray.cli.models import models_job
from effnet_ray.errors import DatasetError, InputError
from effnet_ray.release.load import load_release
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.release_format.record import read_record
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.checkpoints import trial_candidates
from effnet_ray.sweep.sweep_record import Trial, TrialPoint
from effnet_ray.train import average as averaging, checkpoint, run_record
from effnet_ray.train.average import average, run_candidates
from effnet_ray.train.checkpoint import Checkpoint, Snapshot
from effnet_ray.train.run_record import Result
from effnet_ray.train.weights_evaluator import WeightsEvaluator

HEAD = "classifier.weight"


@pytest.fixture(scope="module")
def trained(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something, with the checkpoints of all its epochs."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = replace(
        RECIPE, epochs=4, limit=400, batchnorm="train", micro_batch=16, batch_size=16, lr=3e-3,
        dropout=0.0, drop_path=0.0, crop_scale=0.8,
    )  # fmt: skip
    placement = Placement(workers="1", keep_checkpoints=20, checkpoint_every=10)
    result = plain_run(recipe, digits, str(folder), "trained", placement=placement).finished
    assert result.eval_top1 > 0.3
    return Path(result.run_uri)


def best_of(run: Path) -> Checkpoint:
    result = run_record.load_result(str(run))
    assert result
    return checkpoint.open_checkpoint(result.checkpoint)


def moved(weights: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    """The weights with a head that is off by some noise, of either sign."""
    noise = torch.randn(weights[HEAD].shape, generator=torch.Generator().manual_seed(0))
    return weights | {HEAD: weights[HEAD] + by * noise}


def run_of(trained: Path, uri: str, name: str, offsets: Sequence[float]) -> str:
    """A run whose checkpoints are the best of `trained`, each off by so much."""
    best, run = best_of(trained), run_record.load(str(trained))
    result = run_record.load_result(str(trained))
    assert run and result
    run_uri, weights = storage.join(uri, name), load(best.read(WEIGHTS))
    run_record.create(replace(run, name=name), run_uri)
    for step, offset in enumerate(offsets, 1):
        # Its first checkpoint counts as its best.
        report = replace(best.history[-1], step=step, eval_top1=0.9 - step / 100)
        progress = replace(best.progress.copy_progress(), step=step, history=[report])
        tensors = {WEIGHTS: moved(weights, offset)}
        actual = checkpoint.write(
            Snapshot(progress, tensors, None), storage.join(run_uri, run_record.CHECKPOINTS)
        )
        if step == 1:
            run_record.write_result(
                replace(result, run=name, run_uri=run_uri, checkpoint=actual, steps=1)
            )
    return run_uri


def weights_of(result: Result) -> dict[str, Tensor]:
    return load_file(Path(result.checkpoint) / WEIGHTS)


def test_a_run_s_candidates_are_its_evaluated_epochs_and_measure_as_in_training(
    trained: Path,
) -> None:
    candidates = run_candidates(str(trained))
    assert len(candidates) == 4
    assert len(list((trained / "checkpoints").iterdir())) > 4
    evaluating = WeightsEvaluator(candidates[0].run, "")
    for candidate in candidates:
        actual, report = evaluating(candidate.weights()), candidate.report
        assert actual.metrics[report.ranking_metric.key] == pytest.approx(report.score)
        assert actual.sums.loss == pytest.approx(report.eval_loss, rel=1e-4)


def test_what_lies_between_two_checkpoints_is_found_and_recorded(
    trained: Path, tmp_path: Path
) -> None:
    """Both are off, in opposite directions: their mean is what the run had learned."""
    run_of(trained, str(tmp_path), "pair", (0.3, -0.3))
    averaged = average(run_candidates(str(tmp_path / "pair")), str(tmp_path), "pair")
    assert [tried.kept for tried in averaged.tried] == [True, True]
    result = averaged.result
    assert result and averaged.tried[0].score < averaged.score == averaged.tried[1].score
    expected = load(best_of(trained).read(WEIGHTS))
    actual = weights_of(result)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-6, rtol=1e-6)
    assert result.eval_top1 == pytest.approx(best_of(trained).history[-1].eval_top1)
    run = run_record.load(result.run_uri)
    assert run and run.averaged == tuple(tried.checkpoint for tried in averaged.tried)


def test_a_checkpoint_that_does_not_help_is_left_out(trained: Path, tmp_path: Path) -> None:
    run_of(trained, str(tmp_path), "three", (0.3, 8.0, -0.3))
    averaged = average(run_candidates(str(tmp_path / "three")), str(tmp_path), "three")
    assert [tried.kept for tried in averaged.tried] == [True, False, True]
    run = averaged.result and run_record.load(averaged.result.run_uri)
    assert run and len(run.averaged) == 2


def test_no_better_average_is_no_run(trained: Path, tmp_path: Path) -> None:
    run_of(trained, str(tmp_path), "same", (0.0, 0.0))
    averaged = average(run_candidates(str(tmp_path / "same")), str(tmp_path), "same")
    assert averaged.result is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same"]


def test_counters_are_the_first_s_and_sums_are_exact() -> None:
    first = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([2.0, 6.0]), "n": torch.tensor(5)}
    mean, total = averaging._with(first, {}, 0)
    assert torch.equal(mean["w"], first["w"])
    mean, total = averaging._with(second, total, 1)
    assert torch.equal(mean["w"], torch.tensor([1.5, 4.0]))
    assert mean["w"].dtype == torch.float32
    assert total["w"].dtype == torch.float64


def test_runs_that_differ_or_one_checkpoint_cannot_be_averaged(
    trained: Path, digits: str, tmp_path: Path
) -> None:
    run_of(trained, str(tmp_path), "one", (0.1,))
    (candidate,) = run_candidates(str(tmp_path / "one"))
    with pytest.raises(InputError, match=r"one has 1 evaluated checkpoints, expected two"):
        average([candidate], str(tmp_path), "one")
    other = replace(candidate, run=replace(candidate.run, weights_sha256="0" * 64))
    with pytest.raises(InputError, match="differ in variant, input, classes, data or initial"):
        average([candidate, other], str(tmp_path), "two")
    with pytest.raises(InputError, match=r"there is no run or sweep .*/none: check its name"):
        run_candidates(str(tmp_path / "none"))


def test_other_data_is_refused(trained: Path, tmp_path: Path, packed: Path) -> None:
    run_of(trained, str(tmp_path), "pair", (0.3, -0.3))
    with pytest.raises(DatasetError, match="is not the data set of run 'pair'"):
        average(run_candidates(str(tmp_path / "pair")), str(tmp_path), "pair", data=str(packed))


# --- the verb


def verb(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(models_job, ["average", *argv]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_verb_releases_the_mean_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], s3: str
) -> None:
    """With runs and store on S3."""
    runs, store = f"{s3}/average/runs", f"{s3}/average/store"
    run_of(trained, runs, "pair", (0.3, -0.3))
    places = ("--runs", runs, "--store", store, "--single-writer")
    answer = verb(capsys, "pair", *places)
    assert answer["release"] == "pair@v1"
    record = read_record(answer["release_uri"])
    assert record["averaged"] == [tried["checkpoint"] for tried in answer["tried"]]
    release = load_release("pair@best", store)
    assert release.references is not None
    assert release.calibration.scale
    card = storage.read_bytes(storage.join(release.uri, "README.md")).decode()
    assert "The weights are the mean of 2 checkpoints" in card
    assert "mean of 2 |" in card
    assert "not averaged" not in card
    assert verb(capsys, "pair", *places) == answer


def test_nothing_is_released_where_nothing_is_better(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = run_of(trained, str(tmp_path), "same", (0.0, 0.0))
    answer = verb(capsys, uri, "--store", str(tmp_path / "store"))
    assert answer["release"] is None
    assert len(answer["tried"]) == 2
    assert not list((tmp_path / "store").rglob("*.json"))


def test_a_sweep_s_trials_of_one_variant_are_averaged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "search"
    for number, offset in enumerate((0.3, -0.3)):
        run_of(trained, str(sweep / "runs"), f"search-{number:03d}-b0", (offset,))
    (sweep / sweep_record.SWEEP).write_text("{}")
    points = (TrialPoint(reached=1.0, eval_top1=0.5, device_seconds=1.0),)
    for number, (variant, state) in enumerate(
        [("b0", "finished"), ("b0", "finished"), ("b0", "stopped"), ("b1", "finished")]
    ):
        run = f"search-{number:03d}-{variant}"
        trial = Trial(
            number=number, variant=variant, settings={}, state=state, run=run, curve=points
        )
        sweep_record.write_trial(trial, str(sweep))
    with pytest.raises(InputError, match=r"finished trials of b0, b1, got --variant \(none\)"):
        trial_candidates(str(sweep), "")
    flags = ("--runs", str(tmp_path), "--store", str(tmp_path / "store"))
    answer = verb(capsys, "search", "--variant", "b0", *flags)
    assert answer["release"] == "search-b0@v1"
    shutil.rmtree(sweep / "runs")
