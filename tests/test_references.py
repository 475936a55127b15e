"""A release tells pictures of nothing it knows: they are far from all of its references."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from scipy.stats import mannwhitneyu
from support.loop_worker import CLASSES
from support.releases import forge, released
from torch import Tensor
from torch.nn.functional import normalize

from effnet_ray.errors import RecipeError, ReleaseError
from effnet_ray.inference.export import export
from effnet_ray.inference.http_api import ServedRelease
from effnet_ray.inference.scorer import Scorer
from effnet_ray.inference.unknown_pictures import auroc, check_references
from effnet_ray.model.references import MAX_REFERENCES, MIN_REFERENCES, References, class_means
from effnet_ray.publish.options import ReleaseOptions
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release_format.layout import REFERENCES
from effnet_ray.runtime.inference_actors import MachineShare
from effnet_ray.train import eval_outputs
from effnet_ray.train.eval_outputs import EvalOutputs


def clusters(images: int, seed: int = 0, features: int = 1280) -> tuple[Tensor, Tensor]:
    """Features [n, F] of four classes, float16 of length 1, and labels [n]."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.rand(CLASSES, features, generator=torch.Generator().manual_seed(99)) * 3
    label = torch.arange(images) % CLASSES
    result = centres[label] + torch.rand(images, features, generator=draws)
    return normalize(result).half(), label


def fitted(images: int, false_alarms: float = 0.05) -> References:
    features, label = clusters(images)
    references = References.fit(features, torch.arange(images), label, false_alarms)
    assert references
    return references


def test_a_score_adds_the_distances_to_the_nearest_image_and_the_nearest_mean() -> None:
    references = fitted(60)
    features, _ = clusters(7, seed=1)
    rows, known = features.double().numpy(), references.features.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    means = references.means.double().numpy()
    wanted = (1 - (rows @ known.T).max(axis=1)) + (1 - (rows @ means.T).max(axis=1))
    np.testing.assert_allclose(references.scores(features), wanted, atol=1e-3)


def test_no_image_is_its_own_nearest_reference() -> None:
    references = fitted(60)
    alone = references.scores(references.features, image_ids=references.id)
    assert (alone > references.scores(references.features) + 1e-3).all()


@pytest.mark.parametrize("false_alarms", [0.01, 0.05, 0.2])
def test_new_pictures_of_the_same_kind_are_called_unknown_as_often_as_wanted(
    false_alarms: float,
) -> None:
    references = fitted(800, false_alarms)
    scores = references.scores(clusters(4000, seed=1)[0])
    share = float((scores > references.threshold).float().mean())
    assert share == pytest.approx(false_alarms, rel=0.6)
    strange = torch.rand(100, 1280, generator=torch.Generator().manual_seed(5))
    assert (references.scores(strange) > references.threshold).all()


def test_few_eval_images_make_no_references_and_many_no_more_than_the_limit() -> None:
    features, label = clusters(MIN_REFERENCES - 1)
    assert References.fit(features, torch.arange(len(label)), label, 0.05) is None
    many = MAX_REFERENCES + 10
    features, label = clusters(many, features=8)
    result = References.fit(features, torch.arange(many), label, 0.05)
    assert result and len(result.features) == len(result.id) == MAX_REFERENCES


def test_references_are_of_all_classes_though_ids_are_in_their_order() -> None:
    """Ids of class folders are in the order of classes."""
    images = 2 * MAX_REFERENCES
    features, label = clusters(images, features=64)
    order = label.argsort(stable=True)
    result = References.fit(features[order], torch.arange(images), label[order], 0.05)
    assert result
    assert set(label[order][result.id].tolist()) == set(range(CLASSES))
    new, _ = clusters(400, seed=1, features=64)
    flagged = (result.scores(new) > result.threshold).float().reshape(-1, CLASSES).mean(0)
    assert float(flagged.max()) < 0.15


def test_images_alone_in_their_class_set_no_threshold() -> None:
    features, label = clusters(60)
    alone = torch.cat([label, torch.arange(CLASSES, CLASSES + 30)])
    strange = normalize(torch.rand(30, 1280, generator=torch.Generator().manual_seed(5))).half()
    both = torch.cat([features, strange])
    result = References.fit(both, torch.arange(90), alone, 0.05)
    plain = References.fit(features, torch.arange(60), label, 0.05)
    assert result and plain and result.threshold == pytest.approx(plain.threshold, abs=0.01)
    every = torch.arange(60)
    assert References.fit(features, every, every, 0.05) is None


def test_class_means_are_of_classes_with_images() -> None:
    features, label = clusters(40)
    several = torch.nn.functional.one_hot(label, 6)
    assert class_means(features, several).shape == (CLASSES, 1280)
    assert class_means(features, torch.zeros(40, 6)).shape == (1, 1280)


@pytest.mark.parametrize("value", [0, 1, -0.1, 2])
def test_a_share_of_false_alarms_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(RecipeError, match="false_alarms is"):
        ReleaseOptions(false_alarms=value)


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_auroc_is_the_share_of_pairs(known: list[int], unknown: list[int]) -> None:
    expected = mannwhitneyu(unknown, known).statistic / (len(known) * len(unknown))
    assert auroc(np.array(known), np.array(unknown)) == pytest.approx(expected)


# --- releases


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    """Its references are eval images of its own: random pictures."""
    folder = tmp_path_factory.mktemp("release")
    plain = released(folder / "plain")
    network = plain.network
    images = torch.from_numpy(pictures(60)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features, logits = network.features_and_logits(images)
    outputs: EvalOutputs = {
        eval_outputs.ID: torch.arange(60),
        eval_outputs.FEATURES: normalize(features).half(),
        eval_outputs.LOGITS: logits,
        eval_outputs.LABEL: logits.argmax(1),
    }
    return released(folder, outputs=outputs)


def pictures(count: int, seed: int = 0, size: int = 64) -> np.ndarray:
    """Noise [n, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def test_scorer_server_and_exports_give_the_same_score(
    release: LoadedRelease, tmp_path: Path
) -> None:
    assert release.references
    views = pictures(5, seed=1)
    scorer = Scorer(release.uri, None, MachineShare(cores=1))
    features, _ = scorer.features_and_logits(views)
    wanted = release.references.scores(features).numpy()
    result = scorer.unknown(features)
    assert result is not None
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    images = torch.from_numpy(views).permute(0, 3, 1, 2)
    onnx = export(release, str(tmp_path / "onnx"), "onnx")
    session = onnxruntime.InferenceSession(onnx.file)
    assert [each.name for each in session.get_outputs()] == ["logits", "probabilities", "unknown"]
    (scores,) = session.run(["unknown"], {"images": images.numpy()})
    np.testing.assert_allclose(scores, wanted, atol=1e-3)
    program = torch.export.load(export(release, str(tmp_path / "pt"), "torch").file)
    np.testing.assert_allclose(program.module()(images)[2].detach(), wanted, atol=1e-3)
    assert f"{release.references.threshold:.6g}" in onnx.outputs["unknown"]


def test_the_server_says_what_is_unknown(release: LoadedRelease, tmp_path: Path) -> None:
    size = release.spec.resized  # of which a view is the middle
    noise = pictures(6, seed=2, size=size)
    scores = sorted(released_answer(release, each)["unknown"] for each in noise)
    copy = tmp_path / "release"
    shutil.copytree(release.uri, copy)
    config = json.loads((copy / "config.json").read_text())
    config["unknown"] = {"threshold": (scores[2] + scores[3]) / 2}
    forge(copy, "config.json", json.dumps(config).encode())
    answers = [released_answer(load_release(str(copy), ""), each) for each in noise]
    assert sum(answer["is_unknown"] for answer in answers) == 3
    assert all(answer["is_unknown"] == (answer["unknown"] > scores[2]) for answer in answers)


def released_answer(release: LoadedRelease, pixels: np.ndarray) -> dict[str, float]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (answer,) = ServedRelease(release.uri, 2).predict([file.getvalue()])
    assert isinstance(answer, dict)
    return answer


def test_a_release_without_references_says_nothing_and_says_so(tmp_path: Path) -> None:
    older = released(tmp_path)  # as version 0.1 wrote them
    assert older.references is None and not Path(older.uri, REFERENCES).exists()
    assert "unknown" not in released_answer(older, pictures(1)[0])
    with pytest.raises(ReleaseError, match="cannot tell unknown pictures"):
        check_references(older)


@pytest.mark.parametrize(
    "damage", ["missing", "another width", "not finite", "one image", "no tensors", "threshold"]
)
def test_references_that_are_none_are_refused(
    release: LoadedRelease, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "release"
    shutil.copytree(release.uri, copy)
    result = release.references
    assert result
    match damage:
        case "missing":
            forge(copy, REFERENCES, None)
        case "another width":
            narrow = References(result.features[:, :8], result.id, result.means[:, :8], 0.1)
            forge(copy, REFERENCES, narrow.to_bytes())
        case "not finite":
            broken = References(result.features * torch.nan, result.id, result.means, 0.1)
            forge(copy, REFERENCES, broken.to_bytes())
        case "one image":
            one = References(result.features[:1], result.id[:1], result.means, 0.1)
            forge(copy, REFERENCES, one.to_bytes())
        case "no tensors":
            forge(copy, REFERENCES, b"\x00" * 40)
        case "threshold":
            config = json.loads((copy / "config.json").read_text())
            config["unknown"] = {"threshold": "0.1"}
            forge(copy, "config.json", json.dumps(config).encode())
    with pytest.raises(ReleaseError, match=r"is not a valid release|does not list references"):
        load_release(str(copy), "")
