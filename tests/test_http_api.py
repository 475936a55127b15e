"""The HTTP answers, without HTTP: what `evaluate` and `predict` compute."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.releases import released, without_numbers

from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import EvaluationError, ImageError, InputError
from effnet_ray.inference import onnx_outputs
from effnet_ray.inference.http_api import Answer, ServedRelease
from effnet_ray.inference.scorer import Scorer
from effnet_ray.runtime.inference_actors import MachineShare
from effnet_ray.train import eval_outputs
from effnet_ray.train.eval_outputs import EvalOutputs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(photographs: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(photographs.rglob("*.*"))[:4]]


def probabilities(answer: Answer | ImageError, classes: int) -> list[float]:
    """In the order of the classes, which are called 0, 1, 2, …"""
    assert isinstance(answer, dict)
    named = {each["label"]: each["probability"] for each in answer["labels"]}
    return [named[str(k)] for k in range(classes)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_release_is_served_in_the_precision_in_which_it_is_judged(
    tmp_path: Path, files: list[bytes], precision: str
) -> None:
    release = released(tmp_path, precision=precision)
    views = np.stack([eval_view(decode(data), release.spec) for data in files])
    sight = Scorer(release.uri, release.sha256, MachineShare(cores=1))
    judged = sight.features_and_logits(views)[1].softmax(1).numpy()
    served = [probabilities(said, 4) for said in ServedRelease(release.uri, top=4).predict(files)]
    assert np.allclose(np.float32(served), judged, rtol=1e-6)
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2)
    whole = release.network(pixels).softmax(1).numpy()
    assert np.allclose(judged, whole, atol=1e-6) == (precision == "float32")


def some_outputs(images: int) -> EvalOutputs:
    """Outputs of eval images, from which a release takes references and a calibration."""
    draws = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.rand(images, 1280, generator=draws))
    logits = torch.randn(images, 4, generator=draws)
    return {
        eval_outputs.ID: torch.arange(images),
        eval_outputs.FEATURES: features.half(),
        eval_outputs.LOGITS: logits,
        eval_outputs.LABEL: logits.argmax(1),
    }


@pytest.mark.parametrize("given", [pytest.param(0, marks=pytest.mark.long), 60])
def test_onnx_runtime_answers_what_torch_does(
    tmp_path: Path, files: list[bytes], given: int
) -> None:
    """With references and without."""
    release = released(tmp_path, outputs=some_outputs(given) if given else None)
    assert (release.references is not None) == bool(given)
    torchs, onnxs = (ServedRelease(release.uri, top=4, runtime=each) for each in ("torch", "auto"))
    assert onnxs._onnx is not None
    assert torchs._onnx is None
    for of_torch, of_onnx in zip(torchs.predict(files), onnxs.predict(files), strict=True):
        assert isinstance(of_torch, dict)
        assert isinstance(of_onnx, dict)
        assert of_torch.keys() == of_onnx.keys()
        assert of_torch["label"] == of_onnx["label"]
        assert np.allclose(probabilities(of_torch, 4), probabilities(of_onnx, 4), atol=1e-5)
        if given:
            assert of_onnx["unknown"] == pytest.approx(of_torch["unknown"], abs=1e-4)
    (mapped,) = onnxs.predict(files[:1], [True])
    assert isinstance(mapped, dict)
    assert mapped["map"].startswith("data:image/jpeg")


def test_half_precision_is_torchs_unless_onnx_is_asked_for(
    tmp_path: Path, files: list[bytes]
) -> None:
    release = released(tmp_path, precision="bfloat16")
    assert ServedRelease(release.uri, top=4, runtime="auto")._onnx is None
    (answer,) = ServedRelease(release.uri, top=4, runtime="onnx").predict(files[:1])
    view = torch.tensor(eval_view(decode(files[0]), release.spec)).permute(2, 0, 1)[None]
    whole = release.network(view).softmax(1)[0].numpy()  # in float32
    assert np.allclose(probabilities(answer, 4), whole, atol=1e-5)


@pytest.mark.long  # test_export holds that such an export is refused
def test_what_onnx_cannot_compute_is_refused(tmp_path: Path) -> None:
    release = without_numbers(released(tmp_path))
    with pytest.raises(InputError, match=r"birds/v0001 cannot be converted to ONNX: the outputs"):
        ServedRelease(release.uri, top=2, runtime="onnx")


def test_where_onnx_runtime_itself_fails_torch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ImportError("libstdc++.so.6 is too old")

    release = released(tmp_path)
    monkeypatch.setattr(onnx_outputs, "_exported", lambda _: b"")
    monkeypatch.setattr(onnx_outputs, "_session", fail)
    assert ServedRelease(release.uri, top=2, runtime="auto")._onnx is None
    with pytest.raises(InputError, match=r"too old\): pass --runtime torch"):
        ServedRelease(release.uri, top=2, runtime="onnx")


def test_the_export_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    """Its stdin is a pipe, whose other end is open as long as that process lives."""
    until, alive = os.pipe()
    command = [sys.executable, "-m", onnx_outputs.__name__, released(tmp_path).uri]
    process = subprocess.Popen(
        command, stdin=until, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(until)
    os.close(alive)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (1, b"")


def test_what_is_no_number_is_an_error_that_names_the_release(
    tmp_path: Path, files: list[bytes]
) -> None:
    release = without_numbers(released(tmp_path))
    wrong, unread = ServedRelease(release.uri, top=2).predict([files[0], b"no image"])
    assert isinstance(wrong, EvaluationError) and "birds@v1" in str(wrong)
    assert isinstance(unread, ImageError)
