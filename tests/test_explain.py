"""Activation maps are exact: their mean is the logit, and what they show is what counts."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.releases import CLASSES, released

from effnet_ray.cli.predict import predict_job
from effnet_ray.errors import RecipeError
from effnet_ray.inference import multiclass, multilabel
from effnet_ray.inference.activation_maps import class_maps, overlay, side_by_side
from effnet_ray.inference.explain import explain
from effnet_ray.inference.scorer import Scorer
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime.inference_actors import MachineShare


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return released(tmp_path_factory.mktemp("released"))


def pictures(count: int, size: int = 64) -> np.ndarray:
    """Soft patches of colour [n, size, size, 3]."""
    draws = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((size, size))) for each in draws])


def test_the_mean_of_a_map_is_its_logit_without_the_bias(release: LoadedRelease) -> None:
    views, network = pictures(6), release.network
    images = torch.from_numpy(views).permute(0, 3, 1, 2)
    logits, bias = network(images), network.backbone.classifier.bias
    for index in range(len(CLASSES)):
        classes = torch.full((6,), index)
        maps = class_maps(network, views, classes)
        assert maps.shape == (6, 2, 2)  # 64 / 32
        expected = logits[:, index] - bias[index]
        torch.testing.assert_close(maps.mean((1, 2)), expected, atol=1e-5, rtol=1e-4)


def test_an_overlay_is_brightest_where_the_map_is_highest_and_nowhere_else() -> None:
    view = np.full((64, 64, 3), 30, np.uint8)
    shown = overlay(view, torch.tensor([[-1.0, 0.0], [0.0, 2.0]]))
    assert shown.shape == view.shape and shown.dtype == np.uint8
    assert shown[56, 56].mean() > 120
    assert (shown[:8, :8] == 30).all()  # what speaks against it is not shown
    assert (overlay(view, torch.full((2, 2), -1.0)) == 30).all()


def test_side_by_side_is_the_view_and_the_overlay() -> None:
    (view,), result = pictures(1), torch.rand(2, 2)
    picture = np.asarray(Image.open(io.BytesIO(side_by_side(view, result))))
    assert (picture[:, :64] == view).all() and (picture[:, 64:] == overlay(view, result)).all()


def test_predict_explains_the_first_readable_images(
    release: LoadedRelease, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, pixels in enumerate(pictures(4, 90)):
        Image.fromarray(pixels).save(source / f"{number}.png")
    (source / "0.png").write_bytes(b"no picture")
    folder, count = explain(release, str(source), str(tmp_path / "out"), 2)
    assert (folder, count) == (str(tmp_path / "out/_explained"), 2)
    rows = list(csv.DictReader((Path(folder) / "index.csv").read_text().splitlines()))
    assert [(row["file"], row["path"]) for row in rows] == [
        ("00000.png", "1.png"),
        ("00001.png", "2.png"),
    ]
    assert all(row["label"] in release.classes for row in rows)
    assert Image.open(Path(folder) / "00001.png").size == (128, 64)
    everything = explain(release, str(source), str(tmp_path / "all"), 10)
    assert everything[1] == 3


def test_a_number_of_pictures_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="explain is -1"):
        predict_job(["--model", "a@v1", "--source", "x", "--out", "y", "--explain", "-1"])


def test_mistakes_are_explained_by_the_class_that_was_wrongly_predicted() -> None:
    logits = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]], np.float32)
    scored = multiclass.score_images(logits, [1, 1])
    assert multiclass.explained_class(scored).tolist() == [0, 1]
    several = multilabel.score_images(logits, [[0], [0, 1]])
    assert multilabel.explained_class(several).tolist() == [2, 2]
    nothing = multilabel.score_images(logits, [[0, 1, 2], []])
    assert multilabel.explained_class(nothing).tolist() == [0, 1]


@pytest.mark.parametrize("task", [None, MULTILABEL])
def test_a_scorer_makes_pictures_of_any_number_of_views(tmp_path: Path, task: str | None) -> None:
    result = released(tmp_path, **({"task": task} if task else {}))
    scorer = Scorer(result.uri, None, MachineShare(cores=1))
    assert scorer.maps(pictures(0 + 1)[:0], []) == []
    made = scorer.maps(pictures(3), [0, 1, 3])
    assert len(made) == 3 and all(made)
