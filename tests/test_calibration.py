"""A release's probabilities are calibrated once, and are the same wherever they are used."""

import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import timm
import torch
from hypothesis import given, strategies as st
from PIL import Image
from support.laws import RECIPE
from support.plain_run import plain_run
from support.releases import CLASSES, forge, released

from effnet_ray.data.views import write_eval_view
from effnet_ray.errors import ReleaseError
from effnet_ray.inference import multiclass, multilabel
from effnet_ray.inference.export import export
from effnet_ray.inference.http_api import ServedRelease
from effnet_ray.inference.logits import numpy_probabilities
from effnet_ray.inference.scorer import Scorer
from effnet_ray.publish import calibrate
from effnet_ray.publish.calibrate import (
    best_thresholds,
    fit_calibration,
    fit_platt,
    fit_temperature,
)
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release_format.calibration import Calibration, parse_calibration
from effnet_ray.runtime.inference_actors import MachineShare
from effnet_ray.train import checkpoint, eval_outputs, run_record
from effnet_ray.train.eval_outputs import EvalOutputs


def overconfident(images: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 4] that must be divided by `temperature` to be calibrated, and labels [n]."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(scale=2, size=(images, 4))
    shares = numpy_probabilities(logits, multilabel=False)
    label = (draws.random((images, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    return (temperature * logits).astype(np.float32), label


def shifted(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 4] of rare classes, with a scale and a bias each, and labels [n, 4]."""
    draws = np.random.default_rng(seed)
    margin = draws.normal(-1.5, 2, size=(images, 4))
    label = (draws.random((images, 4)) < 1 / (1 + np.exp(-margin))).astype(np.uint8)
    return ((margin - [0, 1, -1, 2]) / [0.5, 1, 2, 0.25]).astype(np.float32), label


def as_outputs(logits: np.ndarray, label: np.ndarray) -> EvalOutputs:
    draws = torch.Generator().manual_seed(0)
    features = torch.rand(len(label), 1280, generator=draws)
    return {
        eval_outputs.ID: torch.arange(len(label)),
        eval_outputs.FEATURES: torch.nn.functional.normalize(features).half(),
        eval_outputs.LOGITS: torch.from_numpy(logits),
        eval_outputs.LABEL: torch.from_numpy(label),
    }


# --- fits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_temperature_is_found_again(temperature: float) -> None:
    result = fit_temperature(*overconfident(4000, temperature)).temperature
    assert result == pytest.approx(temperature, rel=0.1)


def test_predictions_that_are_all_right_do_not_become_certain() -> None:
    logits, _ = overconfident(98, 1.0)
    calibration = fit_temperature(logits, logits.argmax(axis=1))
    confidence = numpy_probabilities(logits, calibration, multilabel=False).max(axis=1)
    assert 0.9 < confidence.mean() < 0.995


@given(seed=st.integers(0, 10**6), images=st.integers(20, 200))
def test_the_fitted_temperature_has_the_lowest_loss_of_its_neighbours(
    seed: int, images: int
) -> None:
    logits, label = overconfident(images, 2.0, seed)
    best = fit_temperature(logits, label).temperature
    rows, share = np.arange(images), (images + 1) / (images + 2)
    target = np.full(logits.shape, (1 - share) / 3)
    target[rows, label] = share

    def loss(temperature: float) -> float:
        calibration = Calibration.of_temperature(temperature)
        return float(-(target * np.log(numpy_probabilities(logits, calibration, multilabel=False)))
                     .sum(axis=1).mean())  # fmt: skip

    low, high = calibrate.FITTED_TEMPERATURES
    nearby = [
        temperature for temperature in (best * 0.97, best * 1.03) if low < temperature < high
    ]
    assert all(loss(best) <= loss(temperature) for temperature in nearby)


def test_scale_and_bias_of_each_class_are_found_again() -> None:
    calibration = fit_platt(*shifted(20_000))
    assert calibration.scale == pytest.approx([0.5, 1, 2, 0.25], rel=0.1)
    assert calibration.bias == pytest.approx([0, 1, -1, 2], abs=0.2)


def test_a_class_without_images_keeps_finite_probabilities() -> None:
    logits, label = shifted(50)
    label[:, 1] = 0
    label[5:, 2] = 0  # fewer than ten
    fitted = fit_calibration(logits, label)
    assert fitted
    for rare in (1, 2):  # not learnt to be absent
        assert (fitted.calibration.scale[rare], fitted.calibration.bias[rare]) == (1, 0)
        assert fitted.calibration.thresholds[rare] == 0.5
    parse_calibration({"calibration": fitted.calibration.to_json()}, 4)


def test_the_errors_are_of_images_that_the_fit_did_not_see() -> None:
    logits, label = overconfident(600, 3.0)
    fitted = fit_calibration(logits, label)
    assert fitted and fitted.images == 600
    assert fitted.ece_after < 0.6 * fitted.ece_before
    assert fitted.loss_after < fitted.loss_before
    seen = numpy_probabilities(logits, fitted.calibration, multilabel=False)
    seen_loss = -np.log(seen[np.arange(600), label]).mean()
    assert fitted.loss_after > seen_loss  # cross-fitted: a little worse than on its own images


def test_what_does_not_lower_the_loss_is_left_alone() -> None:
    unchanged = [fit_calibration(*overconfident(40, 1.0, seed)) for seed in range(20)]
    left = [fitted for fitted in unchanged if fitted and not fitted.calibration.changes_logits]
    assert left
    assert all(fitted.ece_before == fitted.ece_after for fitted in left)
    assert fit_calibration(*overconfident(calibrate.MIN_IMAGES - 1, 3.0)) is None


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_thresholds_are_those_of_the_highest_f1(seed: int, digits: int) -> None:
    draws = np.random.default_rng(seed)
    probability = draws.random((40, 1)).round(digits)
    label = (draws.random((40, 1)) < probability).astype(np.uint8)
    label[:10] = 1

    def f1(threshold: float) -> float:
        predicted = probability >= threshold
        return float(2 * (predicted & (label == 1)).sum() / (predicted.sum() + label.sum()))

    best = max(f1(value) for value in probability.ravel())
    (chosen,) = best_thresholds(probability, label).tolist()
    assert f1(chosen) == pytest.approx(best)


# --- one meaning of a probability


@pytest.fixture(scope="module")
def one_label(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    outputs = as_outputs(*overconfident(400, 2.5))
    return released(tmp_path_factory.mktemp("one"), outputs=outputs)


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    outputs = as_outputs(*shifted(400))
    return released(tmp_path_factory.mktemp("many"), task=MULTILABEL, outputs=outputs)


@pytest.fixture(params=["one_label", "many_labels"])
def release(request: pytest.FixtureRequest) -> LoadedRelease:
    result: LoadedRelease = request.getfixturevalue(request.param)
    return result


def expected(release: LoadedRelease, logits: np.ndarray) -> np.ndarray:
    """The probabilities by config.json, computed here."""
    values = json.loads(Path(release.uri, "config.json").read_text())["calibration"]
    if "temperature" in values:
        scaled = np.exp(logits / values["temperature"])
        return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))
    margin = np.asarray(values["scale"]) * logits + np.asarray(values["bias"])
    return np.asarray(1 / (1 + np.exp(-margin)))


def photographs(count: int) -> list[bytes]:
    files = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((90, 70)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def views_of(release: LoadedRelease, files: list[bytes]) -> np.ndarray:
    size = release.spec.resolution
    views = np.zeros((len(files), size, size, 3), np.uint8)
    for data, view in zip(files, views, strict=True):
        write_eval_view(data, release.spec, view)
    return views


def test_a_release_is_calibrated_and_says_what_that_changed(release: LoadedRelease) -> None:
    assert release.calibration.changes_logits
    figures = json.loads(Path(release.uri, "metrics.json").read_text())["calibration"]
    assert figures["images"] == 400 and figures["ece_after"] < figures["ece_before"]
    assert ("f1_after" in figures) == (release.recipe.task == MULTILABEL)
    card = Path(release.uri, "README.md").read_text()
    assert f"{figures['ece_after']:.2%}" in card and f"{figures['ece_before']:.2%}" in card


def test_evaluations_predictions_server_and_exports_have_the_same_probabilities(
    release: LoadedRelease, tmp_path: Path
) -> None:
    files = photographs(5)
    views = views_of(release, files)
    scorer = Scorer(release.uri, None, MachineShare(cores=1))
    logits = scorer.features_and_logits(views)[1]
    wanted = expected(release, logits.double().numpy())
    plain = numpy_probabilities(logits.numpy(), multilabel=scorer.multilabel)
    assert np.abs(wanted - plain).max() > 0.01  # calibration does something
    np.testing.assert_allclose(scorer.probabilities(logits), wanted, atol=1e-5)
    np.testing.assert_allclose(served(release, files), wanted, atol=1e-5)
    for format in ("onnx", "torch"):
        exported = export(release, str(tmp_path / format), format)
        images = torch.from_numpy(views).permute(0, 3, 1, 2)
        np.testing.assert_allclose(run_export(exported.file, images), wanted, atol=1e-3)
        assert exported.calibration == release.calibration.to_json()


def served(release: LoadedRelease, files: list[bytes]) -> np.ndarray:
    answers: list[Any] = list(ServedRelease(release.uri, len(CLASSES)).predict(files))
    named = [{each["label"]: each["probability"] for each in a["labels"]} for a in answers]
    return np.array([[values[name] for name in release.classes] for values in named])


def run_export(file: str, images: torch.Tensor) -> np.ndarray:
    if file.endswith(".onnx"):
        session = onnxruntime.InferenceSession(file)
        return np.asarray(session.run(["probabilities"], {"images": images.numpy()})[0])
    return np.asarray(torch.export.load(file).module()(images)[1].detach())


def test_an_evaluation_uses_calibrated_probabilities_and_the_plain_loss(
    one_label: LoadedRelease,
) -> None:
    logits, label = overconfident(50, 2.5, seed=1)
    scored = multiclass.score_images(logits, label, one_label.calibration)
    plain = multiclass.score_images(logits, label)
    wanted = expected(one_label, logits.astype(np.float64))
    np.testing.assert_allclose(scored["confidence"], wanted.max(axis=1), rtol=1e-9)
    np.testing.assert_allclose(
        scored["label_probability"], wanted[np.arange(50), label], rtol=1e-9
    )
    for name in ("loss", "rank", "predicted", "plain_confidence"):
        assert np.array_equal(scored[name], plain[name])
    assert np.array_equal(scored["plain_confidence"], plain["confidence"])


def about_images(scored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores with the columns that every image has."""
    count = len(scored["wrong"])
    empty = np.array([""] * count, object)
    texts = dict.fromkeys(("path", "error", "thumbnail", "map"), empty)
    return {"image": np.arange(count), **texts, **scored}


def test_thresholds_decide_which_classes_are_predicted(many_labels: LoadedRelease) -> None:
    logits, label = shifted(200, seed=1)
    calibration = many_labels.calibration
    thresholds = np.asarray(calibration.thresholds)
    assert (thresholds != 0.5).any()
    wanted = expected(many_labels, logits.astype(np.float64)) >= thresholds
    labels = [np.flatnonzero(row).tolist() for row in label]
    metrics = multilabel.MultilabelMetrics(4, calibration=calibration)
    metrics.add(about_images(multilabel.score_images(logits, labels, calibration)))
    assert [row.predicted for row in metrics.per_class] == wanted.sum(axis=0).tolist()
    assert metrics.label_error_count >= len(metrics.label_errors)
    files = photographs(4)
    answers: list[Any] = list(ServedRelease(many_labels.uri, 1).predict(files))
    scorer = Scorer(many_labels.uri, None, MachineShare(cores=1))
    values = expected(many_labels, scorer.features_and_logits(views_of(many_labels, files))[1]
                      .double().numpy())  # fmt: skip
    for answer, row in zip(answers, values, strict=True):
        names = {name for name, p, t in zip(many_labels.classes, row, thresholds, strict=True)
                 if p >= t}  # fmt: skip
        assert set(answer["predicted"]) == names


def test_the_cards_code_makes_the_same_probabilities(
    release: LoadedRelease, tmp_path: Path
) -> None:
    (data,) = photographs(1)
    photograph = tmp_path / "photo.png"
    photograph.write_bytes(data)
    card = Path(release.uri, "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("PATH_TO_THIS_FOLDER", release.uri).replace("PHOTO.jpg", str(photograph))
    names: dict[str, Any] = {"timm": timm}
    exec(code, names)
    (wanted,) = expected(release, names["logits"][None].detach().double().numpy())
    np.testing.assert_allclose(names["probabilities"].detach(), wanted, atol=1e-5)


# --- config.json


def test_a_release_without_a_calibration_has_the_probabilities_of_its_logits(
    tmp_path: Path,
) -> None:
    release = released(tmp_path)  # as version 0.1 wrote them: its checkpoints have no outputs
    assert "calibration" not in json.loads(Path(release.uri, "config.json").read_text())
    assert release.calibration == Calibration()
    logits = np.random.default_rng(0).normal(size=(3, 4))
    assert np.array_equal(
        numpy_probabilities(logits, release.calibration, multilabel=False),
        numpy_probabilities(logits, multilabel=False),
    )


@pytest.mark.parametrize(
    "calibration",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": "2"},
        {"temperature": True},
        {"temperature": 1e9},
        {"temperature": float("nan")},
        {"scale": [1.0] * 3, "bias": [0.0] * 4, "thresholds": [0.5] * 4},
        {"scale": [1.0] * 4, "bias": [0.0] * 4, "thresholds": [1.5] * 4},
        {"scale": [1.0] * 4, "bias": [0.0] * 4},
        {"scale": 1.0, "bias": [0.0] * 4, "thresholds": [0.5] * 4},
        [1.0],
        None,
        {},
    ],
)
def test_a_calibration_that_is_none_is_refused(
    one_label: LoadedRelease, tmp_path: Path, calibration: object
) -> None:
    copy = tmp_path / "release"
    shutil.copytree(one_label.uri, copy)
    config = json.loads((copy / "config.json").read_text())
    forge(copy, "config.json", json.dumps(config | {"calibration": calibration}).encode())
    with pytest.raises(ReleaseError, match=r"is not a valid release"):
        load_release(str(copy), "")


# --- what a run keeps


def outputs_of(run_uri: str, step: int) -> dict[str, np.ndarray]:
    uri = f"{run_uri}/{run_record.CHECKPOINTS}/{checkpoint.folder(step)}"
    data = checkpoint.open_checkpoint(uri).read(checkpoint.EVAL_OUTPUTS)
    return safetensors.numpy.load(data)


def test_a_sample_of_outputs_is_decided_by_ids_alone() -> None:
    ids = torch.arange(100_000)
    for share in (0.01, 0.5, 0.999):
        kept = eval_outputs.in_sample(ids, share)
        assert float(kept.float().mean()) == pytest.approx(share, abs=0.002)
        thirds = kept.reshape(10, -1).float().mean(1)  # of any part of the ids
        assert float((thirds - share).abs().max()) < 0.01
        apart = torch.cat([eval_outputs.in_sample(ids[k::3], share) for k in range(3)])
        assert int(apart.sum()) == int(kept.sum())


def test_a_run_keeps_the_outputs_of_every_eval_image_whatever_its_workers(
    digits: str, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, epochs=1, limit=96, batch_size=16, micro_batch=4)
    kept = []
    for workers in (1, 3):
        run = plain_run(recipe, digits, str(tmp_path), f"on-{workers}", workers=workers)
        kept.append(outputs_of(run.finished.run_uri, run.finished.steps))
    one, three = kept
    assert len(one["id"]) == 96 and (np.diff(one["id"]) > 0).all()
    assert np.array_equal(one["id"], three["id"])
    assert np.array_equal(one["label"], three["label"])
    np.testing.assert_allclose(one["logits"], three["logits"], atol=1e-3)
    top1 = (one["logits"].argmax(axis=1) == one["label"]).mean()
    assert top1 == pytest.approx(run.finished.eval_top1, abs=1 / 96)
