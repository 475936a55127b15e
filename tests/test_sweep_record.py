"""A sweep's record: what its trials follow from, and records of earlier versions."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from effnet_ray.recipe import Recipe
from effnet_ray.sweep.sweep_record import Sweep, as_recorded, create


def test_a_sweeps_trials_have_the_image_size_of_their_runs() -> None:
    sweep = Sweep(
        name="s", recipe=Recipe(weights="ns"), variants=("b0", "b7"), trials=2, space={},
        searcher="random", budget=None, data="data", fingerprint="f", side=28.0,
    )  # fmt: skip
    assert sweep.trial_recipe("b0", {}).image_size is None  # 224 px, as the weights expect
    assert sweep.trial_recipe("b7", {}).image_size == 224
    assert sweep.trial_recipe("b7", {"image_size": 96}).image_size == 96


def test_a_sweep_recorded_before_image_sizes_followed_the_data_goes_on(tmp_path: Path) -> None:
    sweep = Sweep(
        name="s", recipe=Recipe(weights="ns"), variants=("b0",), trials=2, space={},
        searcher="random", budget=None, data="data", fingerprint="f",
    )  # fmt: skip
    record = asdict(sweep)
    del record["side"]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    now = replace(sweep, side=8.0)
    assert as_recorded(now, str(tmp_path), Recipe(weights="ns"), {}) == sweep
    create(as_recorded(now, str(tmp_path), Recipe(weights="ns"), {}), str(tmp_path))
