"""Releasing a run publishes the weights that scored best."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from support.finished_runs import RECIPE, report, result, run
from support.loop_worker import new_state

from effnet_ray.errors import ReleaseError
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.store import ModelStore
from effnet_ray.train import checkpoint, run_record
from effnet_ray.train.class_metrics import class_metrics


@pytest.mark.parametrize("averaged", [True, False])
def test_a_release_holds_the_average_where_that_was_better(tmp_path: Path, averaged: bool) -> None:
    state = new_state(RECIPE)
    assert state.averaged is not None
    with torch.no_grad():
        for parameter in state.averaged.parameters():
            parameter.add_(1)
    state.step, state.history = 1, [replace(report(0, 0.75), averaged=averaged)]
    uri = str(tmp_path / "run")
    actual = checkpoint.write(checkpoint.snapshot(state), f"{uri}/{run_record.CHECKPOINTS}")
    run_record.create(run(), uri)
    release = release_run(result(uri, actual), ModelStore(str(tmp_path / "store")))
    weights = load((Path(release.uri) / "model.safetensors").read_bytes())
    expected = (state.averaged if averaged else state.network).backbone.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_release_tells_of_all_epochs_also_of_those_after_the_best(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    state = new_state(RECIPE)
    state.step, state.history = 1, [report(0, 0.75)]
    actual = checkpoint.write(checkpoint.snapshot(state), f"{uri}/{run_record.CHECKPOINTS}")
    state.step, state.history = 2, [report(0, 0.75), report(1, 0.5)]
    checkpoint.write(checkpoint.snapshot(state), f"{uri}/{run_record.CHECKPOINTS}")
    run_record.create(run(), uri)
    ended = replace(result(uri, actual), epochs=2, steps=2)
    folder = Path(release_run(ended, ModelStore(str(tmp_path / "store"))).uri)
    metrics = json.loads((folder / "metrics.json").read_bytes())
    assert [epoch["epoch"] for epoch in metrics["history"]] == [0, 1]
    assert metrics["best"]["epoch"] == 0
    card = (folder / "README.md").read_text()
    assert "the best of 2 evaluations" in card and "F1" not in card  # classes were not counted
    cost = json.loads((folder / "release.json").read_bytes())["cost"]
    assert cost["train_images"] == sum(epoch["train_images"] for epoch in metrics["history"])
    shutil.rmtree(f"{uri}/{run_record.CHECKPOINTS}")
    again = release_run(ended, ModelStore(str(tmp_path / "store")))
    assert again.uri == str(folder)  # reported, not redone
    with pytest.raises(ReleaseError, match="or train again under another --name"):
        release_run(ended, ModelStore(str(tmp_path / "other")))


@pytest.mark.parametrize("aps", [(None, None), (0.5, 0.75)])
def test_a_release_tells_each_classs_average_precision_where_there_is_one(
    tmp_path: Path, aps: tuple[float | None, ...]
) -> None:
    uri = str(tmp_path / "run")
    state = new_state(RECIPE)
    state.step, state.history = 1, [report(0, 0.75)]
    counted = [(4, 5, 3), (6, 5, 4)]
    state.per_class = class_metrics([*each, ap] for each, ap in zip(counted, aps, strict=True))
    actual = checkpoint.write(checkpoint.snapshot(state), f"{uri}/{run_record.CHECKPOINTS}")
    run_record.create(run(), uri)
    folder = Path(release_run(result(uri, actual), ModelStore(str(tmp_path / "store"))).uri)
    output = json.loads((folder / "metrics.json").read_bytes())["per_class"]
    assert [each.get("ap") for each in output] == list(aps)
    assert [(each["class"], each["images"]) for each in output] == [("0", 4), ("1", 6)]
    card = (folder / "README.md").read_text()
    assert ("| 0 | 4 | 60.00% | 75.00% | 66.67% | 50.00% |" in card) == (aps[0] is not None)
    assert ("F1 | AP |" in card) == (aps[0] is not None) and "| F1 |" in card
