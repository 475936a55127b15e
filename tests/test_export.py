"""A release, timm and the exports give the same logits from the same files."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import ExifTags, Image
from support.releases import CLASSES, released
from torch import Tensor

from effnet_ray import Placement, storage
from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import InputError, ReleaseError
from effnet_ray.inference import export as exports
from effnet_ray.inference.export import export
from effnet_ray.inference.http_api import ServedRelease
from effnet_ray.inference.predict import predict
from effnet_ray.release.load import LoadedRelease
from effnet_ray.variants import CENTER, SQUASH

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def files(photographs: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(photographs.rglob("*.*"))[:6]]


def views(release: LoadedRelease, files: list[bytes]) -> Tensor:
    """As training's own evaluation shows them: [B, 3, R, R] uint8."""
    shown = np.stack([eval_view(decode(data), release.spec) for data in files])
    return torch.from_numpy(shown).permute(0, 3, 1, 2).contiguous()


def by_training(release: LoadedRelease, files: list[bytes]) -> Tensor:
    logits: Tensor = release.network(views(release, files))
    return logits


def by_timm(release: LoadedRelease, files: list[bytes]) -> Tensor:
    model = timm.create_model(f"local-dir:{release.uri}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pictures = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    with torch.no_grad():
        logits: Tensor = model(torch.stack(pictures))
    return logits


def by_onnx(out: Path, release: LoadedRelease, files: list[bytes]) -> Tensor:
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (logits,) = session.run(["logits"], {"images": views(release, files).numpy()})
    return torch.from_numpy(logits)


def by_program(out: Path, release: LoadedRelease, files: list[bytes]) -> Tensor:
    result: Tensor = torch.export.load(out / "model.pt2").module()(views(release, files))[0]
    return result


def test_training_timm_onnx_and_torch_export_agree_on_the_same_files(
    release: LoadedRelease, files: list[bytes], tmp_path: Path
) -> None:
    assert export(release, str(tmp_path / "a"), "onnx").difference < 1e-4
    assert export(release, str(tmp_path / "b"), "torch").difference < 1e-4
    expected = by_training(release, files)
    assert expected.std(0).min() > 1e-3  # images differ in what is said of them
    for result in (
        by_timm(release, files),
        by_onnx(tmp_path / "a", release, files),
        by_program(tmp_path / "b", release, files),
    ):
        # One logit of 24 was seen to differ by 1.7e-4; which of the three, and why, is not known.
        torch.testing.assert_close(result, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photograph_is_upright_for_timm_as_the_card_says(
    release: LoadedRelease, files: list[bytes], tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(io.BytesIO(files[0])).convert("RGB").save(tmp_path / "1.jpg", quality=95, exif=exif)
    card = (Path(release.uri) / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("PATH_TO_THIS_FOLDER", release.uri)
    scope: dict[str, Any] = {}
    exec(code.replace("PHOTO.jpg", str(tmp_path / "1.jpg")), scope)
    turned = (tmp_path / "1.jpg").read_bytes()
    (expected,) = by_training(release, [turned])
    torch.testing.assert_close(scope["logits"].detach(), expected, atol=3e-4, rtol=1e-4)
    (lying,) = by_timm(release, [turned])
    assert not torch.allclose(lying, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.ray
def test_a_turned_photograph_is_answered_alike_wherever_the_release_is_used(
    cluster: None, release: LoadedRelease, files: list[bytes], tmp_path: Path
) -> None:
    """By predict, a server (torch and ONNX Runtime) and both exports, as if it was upright."""
    (tmp_path / "photos").mkdir()
    upright = Image.open(io.BytesIO(files[0])).convert("RGB")
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / "photos" / f"{orientation}.png"  # without loss, so that pixels are equal
        upright.transpose(turn).save(path, exif=exif)
    turned = [path.read_bytes() for path in sorted((tmp_path / "photos").iterdir())]
    plain = io.BytesIO()
    upright.save(plain, "PNG")
    expected = by_training(release, [plain.getvalue()])[0]
    shares = expected.softmax(0).tolist()
    export(release, str(tmp_path / "onnx"), "onnx")
    export(release, str(tmp_path / "torch"), "torch")
    for logits in (
        *by_training(release, turned),
        *by_onnx(tmp_path / "onnx", release, turned),
        *by_program(tmp_path / "torch", release, turned),
    ):
        torch.testing.assert_close(logits, expected, atol=3e-4, rtol=1e-4)
    for runtime in ("torch", "onnx"):
        for answer in ServedRelease(release.uri, 4, runtime).predict(turned):
            assert isinstance(answer, dict)
            served = {each["label"]: each["probability"] for each in answer["labels"]}
            assert [served[name] for name in CLASSES] == pytest.approx(shares, abs=1e-4)
    out = tmp_path / "out"
    predict(release, str(tmp_path / "photos"), str(out), Placement(workers="1"))
    rows = [row for file in out.glob("part-*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 2
    for row in rows:
        assert row["probabilities"][0] == pytest.approx(max(shares), abs=1e-4)
        assert row["labels"][0] == CLASSES[int(expected.argmax())]


def test_timm_squashes_as_a_release_says_and_its_exports_and_card_say_so(
    files: list[bytes], tmp_path: Path
) -> None:
    release = released(tmp_path, crop_mode=SQUASH)
    centred = replace(release, spec=replace(release.spec, crop_mode=CENTER))
    assert not torch.equal(views(release, files), views(centred, files))
    expected = by_training(release, files)
    torch.testing.assert_close(by_timm(release, files), expected, atol=3e-4, rtol=1e-4)
    output = exports._interface(release)["preprocessing"]["resize"]
    assert output == "both sides to 73 px, whatever the aspect ratio, bicubic, antialiased"
    card = (Path(release.uri) / "README.md").read_text()
    assert "squashed to a square, centre crop 0.875" in card and "An EfficientNet-B0 that" in card


@pytest.mark.parametrize(
    "task", ["multiclass", pytest.param("multilabel", marks=pytest.mark.long)]
)
def test_an_export_says_what_it_expects_and_gives(tmp_path: Path, task: str) -> None:
    release = released(tmp_path, task=task)
    output = export(release, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "export.json").read_bytes())["sha256"] == output.sha256
    model = onnx.load(output.file)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(props["classes"]) == list(CLASSES) and props["release"] == "birds@v1"
    assert "resize" in json.loads(props["preprocessing"])
    session = onnxruntime.InferenceSession(output.file)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 64, 64), np.uint8)
    logits, said = session.run(["logits", "probabilities"], {"images": pixels})
    row = torch.from_numpy(logits)
    expected = row.softmax(1) if task == "multiclass" else row.sigmoid()
    assert np.allclose(said, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_what_says_something_else_than_the_release_is_not_written(
    release: LoadedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(exports, "TOLERANCE", -1.0)  # nothing is near enough
    with pytest.raises(ReleaseError, match="outputs of the exported model differ"):
        export(release, str(tmp_path / "out"), kind)
    assert not (tmp_path / "out").exists()


def test_an_export_computes_in_float32_and_says_so(tmp_path: Path) -> None:
    release = released(tmp_path, precision="bfloat16")
    output = export(release, str(tmp_path / "out"), "torch")
    assert json.loads((tmp_path / "out" / "export.json").read_bytes())["precision"] == "float32"
    assert output.difference < 1e-4  # to the network in float32


def test_an_export_is_not_written_over(release: LoadedRelease, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(InputError, match="already contains an export"):
        export(release, str(tmp_path))


def test_without_its_packages_onnx_says_what_to_install(
    release: LoadedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'effnet-ray\[onnx\]'"):
        export(release, str(tmp_path))


def test_an_export_goes_to_object_storage(release: LoadedRelease, s3: str) -> None:
    output = export(release, f"{s3}/export", "torch")
    assert storage.sizes(f"{s3}/export") == {
        "export.json": len(storage.read_bytes(f"{s3}/export/export.json")),
        "model.pt2": output.bytes,
    }
