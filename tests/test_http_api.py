"""The HTTP answers, without HTTP: what `evaluate` and `predict` compute."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.releases import released, without_numbers

from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import EvaluationError, ImageError
from effnet_ray.inference.http_api import Answer, ServedRelease
from effnet_ray.inference.scorer import Scorer
from effnet_ray.runtime.inference_actors import MachineShare

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


def test_what_is_no_number_is_an_error_that_names_the_release(
    tmp_path: Path, files: list[bytes]
) -> None:
    release = without_numbers(released(tmp_path))
    wrong, unread = ServedRelease(release.uri, top=2).predict([files[0], b"no image"])
    assert isinstance(wrong, EvaluationError) and "birds@v1" in str(wrong)
    assert isinstance(unread, ImageError)
