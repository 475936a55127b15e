"""A release loads as it was published; a damaged or hostile one is refused in one sentence."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support.releases import CLASSES, forge, released

from effnet_ray.errors import ReleaseError, StorageError
from effnet_ray.release import load
from effnet_ray.release.load import load_release
from effnet_ray.release_format import layout
from effnet_ray.release_format.config import parse_config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one release, birds@v1. Read only."""
    folder = tmp_path_factory.mktemp("released")
    released(folder)
    return folder / "store"


@pytest.fixture
def release(store: Path, tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return Path(shutil.copytree(store / "birds/v0001", tmp_path / "copy"))


def test_a_release_opens_by_name_and_by_uri(store: Path) -> None:
    result = load_release("birds@v1", str(store))
    assert result.reference == "birds@v1" and result.uri == str(store / "birds/v0001")
    again = load_release(result.uri, "s3://no-such-store")
    assert (again.reference, again.classes, again.spec) == ("birds@v1", CLASSES, result.spec)
    assert [each.epoch for each in result.history] == [0]
    assert result.provenance["fingerprint"] == "f" * 64
    assert not result.network.training
    assert not any(parameter.requires_grad for parameter in result.network.parameters())


def test_its_preprocessing_is_what_timm_reads(release: Path) -> None:
    model = timm.create_model(f"local-dir:{release}", pretrained=True)
    seen = timm.data.resolve_model_data_config(model)
    spec = load_release(str(release), "").spec
    assert (seen["input_size"][-1], seen["crop_pct"]) == (spec.resolution, spec.crop)
    assert (tuple(seen["mean"]), tuple(seen["std"])) == (spec.mean, spec.std)
    assert seen["interpolation"] == spec.interpolation
    assert seen["crop_mode"] == spec.crop_mode


def test_a_config_without_a_crop_mode_means_center(release: Path) -> None:
    output = json.loads((release / "config.json").read_bytes())
    squash = output["pretrained_cfg"] | {"crop_mode": "squash"}
    assert parse_config(output | {"pretrained_cfg": squash}).spec.crop_mode == "squash"
    del output["pretrained_cfg"]["crop_mode"]
    assert parse_config(output).spec.crop_mode == "center"


def config(**given: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | given).encode()


def seen(**given: Any) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        output = json.loads(data)
        output["pretrained_cfg"] |= given
        return json.dumps(output).encode()

    return changed


def header_of(size: int, header: bytes = b"{}") -> Callable[[bytes], bytes]:
    return lambda data: struct.pack("<Q", size) + header


def other_shape(data: bytes) -> bytes:
    tensors = safetensors.torch.load(data)
    return safetensors.torch.save(tensors | {"classifier.weight": torch.zeros(3, 1280)})


def one_less(data: bytes) -> bytes:
    tensors = safetensors.torch.load(data)
    del tensors["conv_stem.weight"]
    return safetensors.torch.save(tensors)


def many(data: bytes) -> bytes:
    """Names of more classes than the weights are for."""
    names = [f"class {number}" for number in range(200_000)]
    output = {"label_names": names, "num_classes": len(names)}
    return json.dumps(json.loads(data) | output).encode()


def no_numbers(data: bytes) -> bytes:
    tensors = safetensors.torch.load(data)
    tensors["conv_stem.weight"][0] = float("nan")
    return safetensors.torch.save(tensors)


def epoch(**given: Any) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        output = json.loads(data)
        output["history"][0] |= given
        return json.dumps(output).encode()

    return changed


HOSTILE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("model.safetensors", header_of(2**63), "header"),
    ("model.safetensors", header_of(8, b"notjson!"), "header"),
    ("model.safetensors", lambda data: data[:-9], "buffer|incomplete|metadata"),
    ("model.safetensors", lambda data: b"\x80\x04cposix\nsystem\n", "header"),
    ("model.safetensors", other_shape, "is for 3 classes"),
    ("model.safetensors", no_numbers, "conv_stem.weight of .* infinite"),
    ("model.safetensors", one_less, "conv_stem.weight"),
    ("config.json", lambda data: b"[1]", "not a JSON object"),
    ("config.json", lambda data: b"[" * 100_000, "nested too deeply|Expecting"),
    ("config.json", config(architecture="resnet50"), "resnet50"),
    ("config.json", config(label_names=["a", "a", "b", "c"]), "4 distinct names"),
    ("config.json", config(label_names=["a"] * 2), "4 distinct names"),
    ("config.json", many, "is for 4 classes"),
    ("config.json", config(label_names=["a", "b", "\x1b[2J", "d"]), "printable"),
    ("config.json", config(label_names=["a", "b", "\ud800", "d"]), "surrogates"),
    ("config.json", config(label_names=[1, 2, 3, 4]), "not a list of names"),
    ("config.json", seen(input_size=[3, 10**9, 10**9]), "preprocessing"),
    ("config.json", seen(std=[0, 1, 1]), "preprocessing"),
    ("config.json", seen(mean=[float("nan")] * 3), "preprocessing"),
    ("config.json", seen(crop_pct=1e-9), "preprocessing"),
    ("config.json", seen(crop_pct=10**400), "too large"),
    ("config.json", seen(crop_pct=0.2, input_size=[3, 1024, 1024]), "preprocessing"),
    ("config.json", seen(interpolation="nearest"), "preprocessing"),
    ("config.json", seen(crop_mode="border"), "preprocessing"),
    ("recipe.json", config(variant="b9"), "b9"),
    ("recipe.json", config(evil=1), "evil"),
    ("metrics.json", config(history=[{"epoch": 1}]), "EpochReport"),
    ("metrics.json", config(history=3), "iterable"),
    ("metrics.json", epoch(eval_top1=10**400), "too large"),
]


@pytest.mark.parametrize(("file", "forged", "says"), HOSTILE)
def test_a_forged_file_is_refused_in_one_sentence(
    release: Path, file: str, forged: Callable[[bytes], bytes], says: str
) -> None:
    forge(release, file, forged((release / file).read_bytes()))
    with pytest.raises(ReleaseError, match=says) as refused:
        load_release(str(release), "")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "recipe.json"])
def test_a_file_that_the_record_does_not_vouch_for_is_not_used(release: Path, file: str) -> None:
    there = (release / file).read_bytes()
    forge(release, file, None)
    with pytest.raises(ReleaseError, match=file):
        load_release(str(release), "")
    (release / file).write_bytes(there)
    with pytest.raises(ReleaseError, match=file):
        load_release(str(release), "")


def test_an_oversized_file_is_refused_unread(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load.MAX_BYTES, layout.CONFIG, 100)
    with pytest.raises(ReleaseError, match="expected at most 100"):
        load_release(str(release), "")


def test_a_uri_that_is_none_is_said_to_be_that() -> None:
    with pytest.raises(StorageError, match="no bucket"):
        load_release("s3:///v0001", "")
