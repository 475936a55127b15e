"""Real ImageNet weights recognise photographs, and fine-tuning beats a linear probe."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.features import probe_top1
from support.plain_run import plain_run

from effnet_ray import Placement
from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.model.network import build
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.recipe import Recipe
from effnet_ray.train.run_setup import RunSetup, set_up_run

ROOT = Path(__file__).parents[1]
ESPRESSO, CATS = 967, (281, 282, 285)
"""ImageNet's classes: espresso; tabby, tiger cat and Egyptian cat."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `benchmarks/real/fetch.py` fetches; skips where that is out of reach."""
    out = tmp_path_factory.mktemp("real")
    fetched = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/real/fetch.py"), "--out", str(out),
         "--weights", "lite0", "--sets", "photographs", "fashion"],
        capture_output=True, text=True,
    )  # fmt: skip
    if fetched.returncode:
        pytest.skip(f"no real weights here: {fetched.stderr.strip().splitlines()[-1]}")
    return out


@pytest.mark.parametrize(
    ("picture", "classes"), [("espresso/coffee.png", (ESPRESSO,)), ("cat/chelsea.png", CATS)]
)
def test_lite0_knows_a_photograph(real: Path, picture: str, classes: tuple[int, ...]) -> None:
    recipe = Recipe(variant="lite0", weights="in1k")
    spec = recipe.variant_spec.input_spec("in1k")
    recipe = recipe.resolved(spec, workers=1, on_gpu=False)
    file = str(real / "weights/tf_efficientnet_lite0.in1k.safetensors")
    network = build(recipe, spec, 1000, weights_file=file).eval()
    view = eval_view(decode((real / "photographs/val" / picture).read_bytes()), spec)
    with torch.no_grad():
        logits = network(torch.tensor(view).permute(2, 0, 1)[None])
    assert float(logits.softmax(1)[0, list(classes)].sum()) > 0.7


@pytest.mark.timeout(900)
def test_a_default_run_is_better_than_a_linear_probe_of_its_features(
    real: Path, tmp_path: Path
) -> None:
    """Law 11, on Fashion-MNIST: 30 train images of each class."""
    for split, images in (("train", 30), ("val", 100)):
        for folder in sorted((real / "fashion" / split).iterdir()):
            target = tmp_path / "images" / split / folder.name
            target.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:images]:
                (target / file.name).write_bytes(file.read_bytes())
    data = str(tmp_path / "data")
    pack(str(tmp_path / "images"), data, Packing())
    recipe = Recipe(variant="lite0", weights="in1k", image_size=64, epochs=6, batch_size=32)
    mirror = str(real / "weights")
    run = plain_run(recipe, data, str(tmp_path), "default", mirror=mirror).finished
    setup = set_up_run(
        replace(recipe, unfreeze="head"), Placement(workers="1"), data, runs=str(tmp_path),
        name="probe", mirror=mirror,
    )  # fmt: skip
    assert isinstance(setup, RunSetup)
    probe = probe_top1(setup.job)
    error = (probe * (1 - probe) / 1000) ** 0.5
    assert probe > 0.6
    assert run.eval_top1 is not None and run.eval_top1 >= probe - error
