"""An evaluation's page is complete, runs nothing, and fits a phone."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from support.pages import LONG, NASTY, Page, browser, measured
from support.releases import released

from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.inference import report
from effnet_ray.inference.evaluate import Evaluation
from effnet_ray.inference.multiclass import MulticlassMetrics, score_images
from effnet_ray.release.load import LoadedRelease
from effnet_ray.train.metric_definitions import EVAL_TOP1

BREEDS = tuple(f"n020{at:05d}-Soft_coated_wheaten_terrier_{at}" for at in range(120))


def thumbnail(seed: int) -> str:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((128, 96)).save(sink, "JPEG")
    return base64.b64encode(sink.getvalue()).decode()


def evaluation(opened: LoadedRelease, classes: tuple[str, ...], images: int) -> Evaluation:
    """Of random logits that are mostly right; one image cannot be read."""
    draws, count = np.random.default_rng(1), len(classes)
    label = draws.integers(0, count, images)
    logits = draws.normal(size=(images, count))
    logits[np.arange(images), label] += draws.normal(4.0, 2.5, images)
    figures = MulticlassMetrics(count, examples=12)
    bad = np.asarray(["truncated"] + [""] * (images - 1), object)
    figures.add(
        score_images(logits, label)
        | {
            "image": np.arange(images),
            "error": bad,
            "path": np.asarray([f"{NASTY}/{at}/{LONG}.jpg" for at in range(images)], object),
            "thumbnail": np.asarray([thumbnail(at) for at in range(images)], object),
            "map": np.asarray([thumbnail(at + 1) for at in range(images)], object),
        }
    )
    shard = Shard(path="eval/0", row_groups=(images,), bytes=1, sha256="0" * 64)
    manifest = Manifest(classes=classes, splits={"eval": (shard,)})
    return Evaluation(replace(opened, classes=classes), manifest, f"s3://{NASTY}", "eval", figures)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def few(opened: LoadedRelease) -> Evaluation:
    return evaluation(opened, ("dahlia", "garden", NASTY), 90)


@pytest.fixture(scope="module")
def many(opened: LoadedRelease) -> Evaluation:
    return evaluation(opened, BREEDS, 900)


def test_the_page_loads_nothing_and_runs_nothing(few: Evaluation, many: Evaluation) -> None:
    for result in (few, many):
        page = Page(report.html(result))
        assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
        assert {urlparse(link).scheme for link in page.links} <= {"data", ""}
        assert all(link.startswith(("data:image/", "#")) for link in page.links)
        assert NASTY in page.text  # as it is spelled, and inert
    assert b"default-src 'none'" in report.html(few)


def test_the_page_says_all_that_was_found(few: Evaluation) -> None:
    page, figures = report.html(few).decode(), few.metrics
    text = " ".join(Page(page.encode()).text.split())
    for said in (figures.share(EVAL_TOP1), figures.macro_f1, figures.ece):
        assert f"{100 * said:.2f} %" in text
    assert (
        f"{figures.loss:.4f}" in text and "top-5" not in text
    )  # of three classes it says nothing
    for one in figures.per_class:
        assert f"{100 * one.f1:.1f} %" in text and f"{100 * one.precision:.1f} %" in text
    for images in figures.confusion.values():
        assert f">{images}</td>" in page
    assert [m.group(1) for m in re.finditer(r"id (\d+), loss", page)] == [
        str(each.image) for each in (*figures.worst_mistakes, *figures.label_errors)
    ]
    mistakes = len(figures.worst_mistakes) + len(figures.label_errors)
    assert page.count("data:image/jpeg;base64,") == 2 * mistakes  # images and activation maps
    assert "truncated" in text and "batch_size" in text and "another (ffffffff" in text
    assert "Loss and top-1 of each epoch" in page


def test_the_lowest_f1_comes_first(many: Evaluation) -> None:
    page = report.html(many).decode()
    table = page[page.index("<h2>Classes</h2>") : page.index("<h2>Worst")]
    shown = re.findall(r'title="([^"]+)">', table)
    f1 = {BREEDS[one.index]: one.f1 for one in many.metrics.per_class}
    assert [f1[name] for name in shown] == sorted(f1.values()) and len(shown) == 120


def test_many_classes_are_a_picture_and_the_pairs_most_confused(many: Evaluation) -> None:
    page = report.html(many).decode()
    (png,) = re.findall(r'data:image/png;base64,([^"]+)"', page)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    assert picture.shape == (120, 120, 4)
    pairs = {(y, x) for y, x in np.argwhere(picture[..., 3]).tolist()}
    assert pairs == set(many.metrics.confusion)
    label, predicted, images = many.metrics.confused_pairs[0]
    row = f">{BREEDS[label]}</td>.*>{BREEDS[predicted]}</td><td>{images}</td>"
    assert re.search(row, page)


def test_a_release_without_a_history_has_a_page(few: Evaluation) -> None:
    without = replace(few, release=replace(few.release, history=()))
    assert "<h2>Training</h2>" not in report.html(without).decode()


# --- in a browser


@browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("which", ["few", "many"])
def test_a_browser_shows_all_of_it_without_scrolling_sideways(
    request: pytest.FixtureRequest, which: str, width: int, tmp_path: Path
) -> None:
    result: Evaluation = request.getfixturevalue(which)
    wide, title, shown, images, plots = measured(report.html(result), width, tmp_path)
    assert int(wide) <= width
    assert title == "birds@v1 on eval"  # no script has changed it
    mistakes = len(result.metrics.worst_mistakes) + len(result.metrics.label_errors)
    pictures = 2 * mistakes + (which == "many")
    assert int(shown) == int(images) == pictures and pictures > 5
    assert int(plots) == 2
