"""Pretrained weights by the real loading code: a mirror, a local hub, and releases."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, load_file, save_file
from support.hub import client_environment, serving
from support.weights_releases import CLASSES, released, settled
from torch import Tensor

from effnet_ray.errors import WeightsError
from effnet_ray.model import pretrained
from effnet_ray.model.network import Network, build
from effnet_ray.recipe import Recipe
from effnet_ray.release_format import layout
from effnet_ray.variants import CENTER, DEFAULT_VARIANTS, SQUASH, VARIANTS

NAME = "tf_efficientnet_b0.ns_jft_in1k"
HEAD = ("classifier.weight", "classifier.bias")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with random weights of B0 under the name of NoisyStudent's. Read only."""
    folder = tmp_path_factory.mktemp("mirror")
    torch.manual_seed(1)
    save_file(timm.create_model("tf_efficientnet_b0").state_dict(), folder / f"{NAME}.safetensors")
    return folder


def loaded(data: bytes, folder: Path, recipe: Recipe, classes: int, head: int = 1000) -> Network:
    """The recipe's network from fetched bytes, as a worker builds it."""
    file = folder / "fetched.safetensors"
    file.write_bytes(data)
    spec = recipe.variant_spec.input_spec()
    return build(recipe, spec, classes, weights_file=str(file), weights_classes=head)


def body_is(network: Network, tensors: dict[str, Tensor]) -> bool:
    """Whether all but the head are exactly these."""
    result = network.backbone.state_dict()
    assert result.keys() == tensors.keys()
    return all(torch.equal(result[name], tensors[name]) for name in tensors if name not in HEAD)


def head_is(network: Network, tensors: dict[str, Tensor]) -> bool:
    result = network.backbone.state_dict()
    return all(torch.equal(result[name], tensors[name]) for name in HEAD)


# --- a mirror


def test_a_mirrors_weights_are_loaded_exactly_and_the_head_is_new(
    mirror: Path, tmp_path: Path
) -> None:
    recipe = settled(weights="ns")
    data = pretrained.fetch(pretrained.resolve(recipe), str(mirror))
    assert data
    network = loaded(data, tmp_path, recipe, classes=3)
    assert body_is(network, load(data))
    scratch = build(recipe, recipe.variant_spec.input_spec(), 3)
    assert head_is(network, scratch.backbone.state_dict())  # seeded by the recipe alone


def test_a_thousand_classes_of_your_own_are_not_imagenets() -> None:
    start = pretrained.resolve(settled(weights="ns"))
    assert pretrained.head_classes(start, tuple(map(str, range(1000)))) == -1


def test_a_head_of_as_many_outputs_is_loaded_where_it_is_asked_for(
    mirror: Path, tmp_path: Path
) -> None:
    data = (mirror / f"{NAME}.safetensors").read_bytes()
    network = loaded(data, tmp_path, settled(weights="ns"), classes=1000)
    assert body_is(network, load(data)) and head_is(network, load(data))


def test_weights_missing_in_the_mirror_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"{NAME} are not in the mirror .*put {NAME}\.safet"):
        pretrained.fetch(pretrained.resolve(settled(weights="ns")), str(tmp_path))


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_a_damaged_file_is_refused(mirror: Path, tmp_path: Path, keep: int) -> None:
    whole = (mirror / f"{NAME}.safetensors").read_bytes()
    (tmp_path / f"{NAME}.safetensors").write_bytes(whole[:keep])
    with pytest.raises(WeightsError, match=r"damaged .*fetch them again"):
        pretrained.fetch(pretrained.resolve(settled(weights="ns")), str(tmp_path))


def test_from_scratch_nothing_is_fetched() -> None:
    result = pretrained.resolve(settled(weights="none"))
    assert (result.name, pretrained.fetch(result, None)) == ("none", None)


@pytest.mark.parametrize("variant", DEFAULT_VARIANTS)
def test_best_is_noisy_student_for_every_variant(variant: str) -> None:
    best, ns = (pretrained.resolve(settled(variant=variant, weights=w)) for w in ("best", "ns"))
    assert best == ns
    assert best.name == f"tf_efficientnet_{variant}.ns_jft_in1k"


def test_in21k_has_a_head_of_its_own() -> None:
    result = pretrained.resolve(settled(variant="v2_s", weights="in21k"))
    assert result.name == "tf_efficientnetv2_s.in21k" and result.num_classes == 21_843
    assert pretrained.head_classes(result, ("cat", "dog")) == 21_843


def test_a_family_that_the_variant_lacks_is_refused_and_those_it_has_are_listed() -> None:
    with pytest.raises(WeightsError, match="weights for b0: choose one of in1k, aa, ap, ns"):
        pretrained.resolve(Recipe(variant="b0", weights="ra"))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(WeightsError, match="weights 'imagenet' are unknown"):
        pretrained.resolve(Recipe(weights="imagenet"))


def test_adversarial_weights_bring_their_own_mean() -> None:
    assert pretrained.resolve(settled(weights="ap")).spec.mean == (0.5, 0.5, 0.5)


def test_the_input_spec_takes_the_recipes_resolution() -> None:
    spec = pretrained.resolve(settled(weights="ns")).spec
    assert pretrained.input_spec(settled(), spec) == replace(spec, resolution=32)


# --- the hub, spoken by a server of this machine


@contextmanager
def hub(file: Path, busy: int = 0) -> Iterator[str]:
    """Serve one model's file as the hub does, after `busy` refusals; yields the endpoint."""
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    refusals = iter(range(busy))

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            result = self.path == f"/timm/{NAME}/resolve/main/model.safetensors"
            status = 200 if result else 404
            self.send_response(503 if next(refusals, None) is not None else status)
            self.send_header("Content-Length", str(len(data) if result else 0))
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", "c" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as endpoint:
        yield endpoint


FETCH = """
import sys
from effnet_ray.errors import WeightsError
from effnet_ray.model import pretrained
from effnet_ray.recipe import Recipe
try:
    data = pretrained.fetch(pretrained.resolve(Recipe(weights="best")), None)
except WeightsError as error:
    sys.exit(f"refused: {error}")
open(sys.argv[1], "wb").write(data)
"""


def fetch_from(endpoint: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Fetch from a hub in a fresh process: its client reads the endpoint when imported."""
    environment = client_environment(endpoint, folder)
    command = [sys.executable, "-c", FETCH, str(folder / "fetched.safetensors")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_weights_come_from_a_busy_hub_whole_and_load(mirror: Path, tmp_path: Path) -> None:
    source = mirror / f"{NAME}.safetensors"
    with hub(source, busy=2) as endpoint:
        ended = fetch_from(endpoint, tmp_path)
    assert ended.returncode == 0, ended.stderr
    data = (tmp_path / "fetched.safetensors").read_bytes()
    assert data == source.read_bytes()
    assert body_is(loaded(data, tmp_path, settled(), classes=3), load(data))


def test_without_network_and_mirror_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        endpoint = f"http://127.0.0.1:{closed.server_port}"
    ended = fetch_from(endpoint, tmp_path)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith(f"refused: cannot fetch weights {NAME} from the hub")
    assert "--weights-mirror" in said and "--weights none" in said
    assert "Traceback" not in ended.stderr


# --- releases


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A B0 of three classes as a release. Read only."""
    return released(tmp_path_factory.mktemp("store") / "v0001")[1]


@pytest.mark.parametrize(("variant", "size"), [("b0", 48), ("b2", 64)])
def test_timm_loads_a_release_with_its_labels_and_its_preprocessing(
    variant: str, size: int, tmp_path: Path
) -> None:
    network, folder = released(tmp_path / "v0001", variant, size)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected, result = network(images), model((images - network.mean) / network.std)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)
    recorded = model.pretrained_cfg
    assert list(recorded["label_names"]) == list(CLASSES)
    assert recorded["num_classes"] == len(CLASSES)
    assert tuple(recorded["input_size"]) == (3, size, size)
    assert (tuple(recorded["mean"]), tuple(recorded["std"])) == ((0.5,) * 3, (0.5,) * 3)
    assert (recorded["crop_pct"], recorded["interpolation"]) == (0.77, "bicubic")


@pytest.mark.parametrize(
    ("variant", "size", "crop_mode"),
    [("b0", 48, CENTER), ("b2", 64, CENTER), ("v2_b0", 64, SQUASH)],
)
def test_timms_own_eval_view_of_a_release_is_the_recorded_one(
    variant: str, size: int, crop_mode: str, tmp_path: Path
) -> None:
    _, folder = released(tmp_path / "v0001", variant, size, crop_mode)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    for test in (False, True):
        view = timm.data.resolve_data_config({}, model=model, use_test_size=test)
        assert (view["input_size"], view["crop_pct"]) == ((3, size, size), 0.77)
        assert view["crop_mode"] == crop_mode
    result = pretrained.resolve(settled(variant=variant, weights=str(folder))).spec
    assert (result.resolution, result.crop_mode) == (size, crop_mode)


def test_a_release_says_what_it_was_shown(release: Path) -> None:
    result = pretrained.resolve(settled(weights=str(release)))
    expected = replace(VARIANTS["b0"].input_spec("ap"), resolution=48, crop=0.77)
    assert result == pretrained.Weights(str(release), expected, CLASSES, 3)


@pytest.mark.parametrize(
    ("classes", "keeps"),
    [(CLASSES, True), (("cat", "dog", "fox"), False), (("dog", "cat", "émeu"), False),
     (("cat", "dog", "émeu", "fox"), False)],
)  # fmt: skip
def test_a_releases_head_is_kept_only_for_the_same_classes(
    release: Path, tmp_path: Path, classes: tuple[str, ...], keeps: bool
) -> None:
    recipe = settled(weights=str(release))
    start = pretrained.resolve(recipe)
    data = pretrained.fetch(start, None)
    assert data
    head = pretrained.head_classes(start, classes)
    network = loaded(data, tmp_path, recipe, len(classes), head)
    saved = load_file(release / layout.WEIGHTS)
    assert body_is(network, saved)
    if len(classes) == len(CLASSES):
        assert head_is(network, saved) == keeps


def test_a_release_of_another_variant_is_refused(release: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"are for tf_efficientnet_b0, but --variant b1 is .*_b1"
    ):
        pretrained.resolve(settled(variant="b1", weights=str(release)))


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / layout.CONFIG).write_text("[]")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(WeightsError, match="not a release"):
            pretrained.resolve(settled(weights=str(folder)))


def test_a_release_without_its_weights_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / layout.CONFIG).write_bytes((release / layout.CONFIG).read_bytes())
    with pytest.raises(WeightsError):
        pretrained.fetch(pretrained.resolve(settled(weights=str(tmp_path))), None)
