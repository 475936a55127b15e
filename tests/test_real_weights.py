"""Real ImageNet weights, in our network and with our preprocessing, know what they see."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.model.network import build
from effnet_ray.recipe import Recipe

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
         "--weights", "lite0", "--sets", "photographs"],
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
