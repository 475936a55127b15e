"""The int8 export says what it loses, and is not written where that is too much."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.laws import RECIPE
from support.plain_run import plain_run

from effnet_ray.errors import EvaluationError, InputError, RecipeError
from effnet_ray.inference import eval_inputs
from effnet_ray.inference.evaluate import open_inputs
from effnet_ray.inference.export import export
from effnet_ray.inference.quantize import QuantizeOptions
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release.store import ModelStore


@pytest.fixture(scope="module")
def trained(digits: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRelease, float]:
    """A release that knows something about the digits, and its eval top-1."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = replace(
        RECIPE, variant="lite0", epochs=2, limit=None, batch_size=32, micro_batch=16, lr=3e-3,
        image_size=64, batchnorm="train", crop_scale=0.7, drop_path=0.0,
    )  # fmt: skip
    result = plain_run(recipe, digits, str(folder), "trained", workers=2).finished
    store = ModelStore(f"{folder}/store")
    return load_release(release_run(result, store).uri, ""), result.eval_top1


def test_an_int8_export_says_what_it_loses(
    trained: tuple[LoadedRelease, float], digits: str, tmp_path: Path
) -> None:
    release, top1 = trained
    options = QuantizeOptions(data=digits, max_drop=5.0)
    exported = export(release, str(tmp_path / "int8"), quantizing=options)
    actual, record = exported.quantized, json.loads((tmp_path / "int8/export.json").read_text())
    assert actual
    assert exported.bytes == (tmp_path / "int8/model.onnx").stat().st_size
    assert exported.bytes < 0.5 * actual.bytes_float
    assert actual.top1_float == pytest.approx(top1, abs=1.5 / 359) and top1 > 0.4
    assert actual.top1 == measured_top1(Path(exported.file), release, digits)
    assert actual.drop_points == pytest.approx(100 * (actual.top1_float - actual.top1))
    assert actual.drop_points <= 5.0
    for key in ("top1", "top1_float", "drop_points", "bytes", "ms", "ms_float"):
        assert record[key] == exported.as_json()[key]
    quantized = {node.op_type for node in onnx.load(exported.file).graph.node}
    assert "QuantizeLinear" in quantized


def measured_top1(model: Path, release: LoadedRelease, data: str) -> float:
    """Top-1 of an ONNX file on the eval split, image by image."""
    inputs = open_inputs(release, data, "eval", False)
    session, hits = onnxruntime.InferenceSession(model), list[bool]()
    for units in inputs.read_units(64):
        for views, metadata in eval_inputs.preprocess(inputs, units):
            for view, label in zip(views, metadata["label"], strict=True):
                image = np.ascontiguousarray(view.transpose(2, 0, 1)[None])
                (logits,) = session.run(["logits"], {"images": image})
                hits.append(int(logits[0].argmax()) == label)
    return float(np.mean(hits))


def test_what_loses_too_much_is_searched_for_and_not_written(
    trained: tuple[LoadedRelease, float], digits: str, tmp_path: Path
) -> None:
    said = list[str]()
    options = QuantizeOptions(data=digits, max_drop=-101.0, limit=40)
    with pytest.raises(EvaluationError, match=r"int8 loses .* points of top-1 on 40 eval images"):
        export(trained[0], str(tmp_path / "int8"), quantizing=options, report=said.append)
    assert not (tmp_path / "int8").exists()
    kept = [line.split()[-3] for line in said if "in float32" in line and "keeping" in line]
    assert kept == ["1", "2", "4", "8", "16"]  # of 49, at most half


def test_int8_is_for_onnx_and_for_data_of_the_releases_classes(
    trained: tuple[LoadedRelease, float], digits: str, tmp_path: Path
) -> None:
    options = QuantizeOptions(data=digits)
    with pytest.raises(InputError, match="needs --format onnx, not torch"):
        export(trained[0], str(tmp_path), "torch", options)
    with pytest.raises(RecipeError, match="limit is 0"):
        QuantizeOptions(data=digits, limit=0)
    with pytest.raises(InputError, match="no data set at"):
        export(trained[0], str(tmp_path), quantizing=QuantizeOptions(data=str(tmp_path)))
    assert not list(tmp_path.iterdir())
