"""What a run's defaults follow from: its data set, its images and the GPUs of its start."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effnet_ray import Packing, Placement, Recipe, pack, recipe as recipes
from effnet_ray.data import manifest as manifests
from effnet_ray.data.source_size import typical_side
from effnet_ray.errors import RunExistsError
from effnet_ray.train import run_record
from effnet_ray.train.run_record import Run
from effnet_ray.train.run_setup import RunSetup, set_up_run

RECIPE = Recipe(variant="b0", weights="ns", epochs=2)


def set_up(recipe: Recipe, data: str, runs: Path, mirror: str, placement: Placement) -> Run:
    setup = set_up_run(recipe, placement, data, runs=str(runs), name="run", mirror=mirror)
    assert isinstance(setup, RunSetup)
    if setup.new:
        run_record.create(setup.job.run, setup.job.run_uri)
    return setup.job.run


def test_the_typical_side_is_that_of_the_images_as_packed(digits: str, tmp_path: Path) -> None:
    assert typical_side(manifests.load(digits), digits) == 8
    random = np.random.default_rng(0)
    for number, size in enumerate([(40, 300), (90, 60), (50, 70), (64, 64)] * 3):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(file)
    pack(str(tmp_path / "images"), str(tmp_path / "data"), Packing(eval_fraction=0.2))
    side = typical_side(manifests.load(str(tmp_path / "data")), str(tmp_path / "data"))
    assert side is not None and 40 <= side <= 64


def test_small_images_batch_and_rate_are_resolved_and_recorded(
    digits: str, weights_mirror: str, tmp_path: Path
) -> None:
    run = set_up(RECIPE, digits, tmp_path, weights_mirror, Placement(workers="1"))
    assert (run.recipe.image_size, run.spec.resolution) == (96, 96)
    assert (run.recipe.batch_size, run.recipe.lr) == (32, pytest.approx(1e-3 * 0.5**0.5))
    again = set_up(RECIPE, digits, tmp_path, weights_mirror, Placement(workers="3"))
    assert again == run


def test_a_run_of_several_gpus_resumes_on_fewer_with_its_own_batch(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "MIN_STEPS", 10)  # the sample data is small
    recipe = replace(RECIPE, weights="none", image_size=32)
    two, one = Placement(workers="2", gpus_per_worker=1), Placement(workers="1")
    run = set_up(recipe, digits, tmp_path, "", two)
    assert (run.gpus, run.recipe.batch_size) == (2, 128)
    assert set_up(recipe, digits, tmp_path, "", one) == run
    with pytest.raises(RunExistsError, match=r"lr 0\.1"):
        set_up(replace(recipe, lr=0.1), digits, tmp_path, "", one)


def test_a_run_goes_on_with_the_rate_of_its_start_whatever_the_defaults_are_now(
    digits: str, weights_mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = set_up(RECIPE, digits, tmp_path, weights_mirror, Placement(workers="1"))
    monkeypatch.setattr(recipes, "FEW_IMAGES", 10_000)
    assert set_up(RECIPE, digits, tmp_path, weights_mirror, Placement(workers="1")) == run
