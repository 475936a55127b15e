"""Evaluating a multilabel release gives the metrics of training, and a page."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.datasets import COLOURS, SEVERAL, SMALL, WANTED, copied
from support.evaluations import no_ray
from support.pages import LONG, NASTY, Page, browser, measured
from support.plain_run import plain_run
from support.releases import released

from effnet_ray import Placement, storage
from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Block
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.errors import DatasetError
from effnet_ray.inference import eval_inputs as shown, evaluate as evaluating, report
from effnet_ray.inference.evaluate import Evaluation, ScoringActor, decode_scored, evaluate
from effnet_ray.inference.multilabel import MultilabelMetrics, score_images
from effnet_ray.packing import shards
from effnet_ray.packing.pack import pack
from effnet_ray.publish.from_run import release_run
from effnet_ray.publish.test_score import Scoring
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release.store import ModelStore
from effnet_ray.runtime.inference_actors import MachineShare
from effnet_ray.train.batch import Batch
from effnet_ray.train.evaluation import evaluate as training_evaluate
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5

NAMES = ("red", "yellow", "blue", "green")
"""As a release may know them: in another order, and one more."""


def noisy(folder: Path, count: int) -> str:
    """A CSV of stripes on noise, so that no two views are equal: ranks of ties are float noise."""
    draws = np.random.default_rng(0)
    folder.mkdir()
    lines = ["path,label"]
    for number in range(count):
        pixels = draws.integers(0, 120, (40, 40, 3), np.uint8)
        shown = WANTED[number % len(WANTED)]
        for place, name in enumerate(sorted(COLOURS)):
            if name in shown:
                pixels[12 * place + 4 : 12 * place + 12] = COLOURS[name]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{'|'.join(shown)}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "table.csv")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> str:
    """72 images of stripes of three colours, packed in row groups of five: work for several."""
    folder = tmp_path_factory.mktemp("coloured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_IMAGES", 5)
        packing = replace(SEVERAL, test_fraction=0.125)
        manifest = pack(noisy(folder / "source", 72), str(folder / "packed"), packing)
    assert len(manifest.index("eval").sizes) >= 4
    return str(folder / "packed")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    opened = released(tmp_path_factory.mktemp("released"), task="multilabel")
    return replace(opened, classes=NAMES)


# --- without Ray in between


def rows(release: LoadedRelease, data: str) -> Iterator[Block]:
    split = evaluating.open_inputs(release, data, "eval", thumbnails=True)
    for pieces in split.read_units(4):
        yield from evaluating.preprocessed_rows(split, [pieces])


def alone(release: LoadedRelease, data: str) -> MultilabelMetrics:
    figures = MultilabelMetrics(len(release.classes))
    actor = ScoringActor(release.uri, release.sha256, MachineShare())
    for row in rows(release, data):
        for block in actor(row):
            for scored in decode_scored(block):
                figures.add(scored)
    return figures


def test_figures_are_those_of_training_time_evaluation(
    release: LoadedRelease, coloured: str
) -> None:
    split = evaluating.open_inputs(release, coloured, "eval", thumbnails=False)

    def batches() -> Iterator[Batch]:
        for pieces in split.read_units(4):
            for views, about in shown.preprocess(split, pieces):
                label = torch.zeros(len(views), 4, dtype=torch.uint8)
                for row, own in zip(label, about["label"], strict=True):
                    row[own] = 1
                image = torch.from_numpy(views).permute(0, 3, 1, 2)
                yield Batch(image, label, torch.ones(len(image)))

    (trained,) = training_evaluate([release.network], batches(), multilabel=True)
    figures, tally = alone(release, coloured), trained.sums
    assert figures.mean_ap == trained.mean_ap
    assert (figures.share(EVAL_TOP1), figures.share(EVAL_TOP5), figures.images) == (
        tally.share(EVAL_TOP1),
        tally.share(EVAL_TOP5),
        tally.images,
    )
    # Logits are in the hundreds, and float32 adds in another order on another number of threads.
    assert figures.loss == pytest.approx(tally.loss, rel=1e-3)


def test_classes_are_counted_under_their_names(release: LoadedRelease, coloured: str) -> None:
    manifest = manifests.load(coloured)
    paths = [shard.path for shard in manifest.splits["eval"]]
    output = [own for path in paths for own in pq.read_table(f"{coloured}/{path}")["label"]]
    every = [manifest.classes[k] for own in output for k in own.as_py()]
    actual = {NAMES[one.index]: one.support for one in alone(release, coloured).per_class}
    assert actual == {name: every.count(name) for name in NAMES} and actual["yellow"] == 0


def test_mistakes_and_only_they_bring_thumbnails(release: LoadedRelease, coloured: str) -> None:
    network, actual = ScoringActor(release.uri, release.sha256, MachineShare()), 0
    for row in rows(release, coloured):
        (block,) = network(row)
        said = next(decode_scored(block))
        wrong = ((said["scores"] >= 0) != said["label"]).any(axis=1)
        assert [bool(small) for small in said["thumbnail"]] == wrong.tolist()
        assert said["wrong"].tolist() == wrong.tolist()
        actual += wrong.sum()
    assert actual


def test_a_torn_image_is_named_and_counts_for_nothing(
    release: LoadedRelease, coloured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "FULL_CHECK_BYTES", 0)
    data = copied(Path(coloured), tmp_path / "data")
    shard = data / manifests.load(coloured).splits["eval"][0].path
    row, raw = pq.read_table(shard).to_pylist()[2], shard.read_bytes()
    whole = row["image"]["bytes"]
    shard.write_bytes(raw.replace(whole, whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]))
    figures, without = alone(release, str(data)), alone(release, coloured)
    assert list(figures.unreadable) == [row["id"]]
    assert (figures.processed, figures.images) == (without.images, without.images - 1)


def test_images_of_one_class_are_refused(release: LoadedRelease, packed: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"trained with any number of classes per image, .* one class"
    ):
        evaluate(release, str(packed), Placement(), connect=no_ray)


# --- a run


@pytest.mark.ray
@pytest.mark.long
def test_a_release_is_worth_what_its_training_said_on_1_and_2_workers(
    cluster: object, coloured: str, tmp_path: Path
) -> None:
    recipe = replace(SMALL, limit=None, epochs=1)
    result = plain_run(recipe, coloured, str(tmp_path), "run", workers=2).finished
    scoring = Scoring(coloured, Placement(workers="2"), lambda _: None)
    released = release_run(result, ModelStore(f"{tmp_path}/store"), scoring=scoring)
    release = load_release(released.uri, "")
    metrics = json.loads(storage.read_bytes(f"{release.uri}/metrics.json"))
    best, test = metrics["best"], metrics["test"]
    assert 0 < test["test_map"] <= 1 and test["test_images"] == 10
    one = evaluate(release, coloured, Placement(workers="1", cores=1)).metrics
    assert isinstance(one, MultilabelMetrics)
    assert one.processed == best["eval_images"] == manifests.load(coloured).images["eval"]
    assert one.mean_ap == pytest.approx(best["eval_map"], abs=1e-6)
    assert (one.share(EVAL_TOP1), one.share(EVAL_TOP5)) == (best["eval_top1"], best["eval_top5"])
    assert one.loss == pytest.approx(best["eval_loss"], abs=1e-5)
    assert [each["f1"] for each in metrics["per_class"]] == [each.f1 for each in one.per_class]
    output = [each["ap"] for each in metrics["per_class"]]
    assert output == pytest.approx([each.ap for each in one.per_class], abs=1e-6)
    page = tmp_path / "page.html"
    on_two = ["--workers", "2", "--cores", "1", "--report", str(page)]
    two = evaluate_job(["--model", release.uri, "--data", coloured, *on_two])
    same = {
        "eval_map": one.mean_ap,
        "eval_loss": one.loss,
        "eval_top1": one.share(EVAL_TOP1),
        "eval_top5": one.share(EVAL_TOP5),
        "f1": one.macro_f1,
        "micro_f1": one.micro_f1,
        "ece": one.ece,
        "images": one.processed,
        "suspected_labels": one.label_error_count,
    }
    assert {name: two[name] for name in same} == same  # to the last digit
    assert f"{100 * one.mean_ap:.2f} %" in " ".join(page.read_text().split())


# --- the page

TAGS = ("beach", "boat", "people", "sunset over a very long name", NASTY)


def picture(own: np.ndarray) -> str:
    """A JPEG with a stripe of its own grey for every class that is there."""
    pixels = np.full((96, 128), 30, np.uint8)
    for k in np.flatnonzero(own):
        pixels[:, 24 * k : 24 * k + 22] = 60 + 40 * k
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return base64.b64encode(sink.getvalue()).decode()


def evaluation(opened: LoadedRelease, images: int = 48, strength: float = 3.0) -> Evaluation:
    """Of five classes and random logits, mostly right; one image cannot be read."""
    draws = np.random.default_rng(3)
    label = draws.random((images, 5)) < (0.5, 0.3, 0.4, 0.2, 0.1)
    logits = draws.normal(-1.5, 1.0, label.shape) + strength * label
    figures = MultilabelMetrics(5, examples=8)
    texts = {
        "path": [f"{NASTY}/{at}/{LONG}.jpg" for at in range(images)],
        "error": ["truncated"] + [""] * (images - 1),
        "thumbnail": [picture(own) for own in label],
        "map": [picture(own) for own in label],
    }
    columns = {name: np.asarray(column, object) for name, column in texts.items()}
    said = score_images(logits, [np.flatnonzero(own).tolist() for own in label])
    figures.add(said | columns | {"image": np.arange(images)})
    shard = Shard(path="eval/0", row_groups=(images,), bytes=1, sha256="0" * 64)
    manifest = Manifest(classes=TAGS, splits={"eval": (shard,)}, task="multilabel")
    history = tuple(
        replace(opened.history[0], epoch=at, eval_map=0.4 + at / 10) for at in range(4)
    )
    known = replace(opened, classes=TAGS, history=history)
    return Evaluation(known, manifest, f"s3://{NASTY}", "eval", figures)


@pytest.fixture(scope="module")
def tagged(release: LoadedRelease) -> Evaluation:
    return evaluation(release)


def test_the_page_says_all_that_was_found(tagged: Evaluation) -> None:
    figures = tagged.metrics
    assert (
        isinstance(figures, MultilabelMetrics) and figures.worst_mistakes and figures.label_errors
    )
    page = report.html(tagged).decode()
    text = " ".join(Page(page.encode()).text.split())
    for said in (
        figures.mean_ap,
        figures.macro_f1,
        figures.micro_f1,
        figures.ece,
        figures.share(EVAL_TOP1),
    ):
        assert f"{100 * said:.2f} %" in text
    for one in figures.per_class:
        for share in (one.ap, one.precision, one.recall, one.f1):
            assert share is not None and f"{100 * share:.1f} %" in text
    shown = [*figures.worst_mistakes, *figures.label_errors]
    assert page.count("data:image/jpeg;base64,") == 2 * len(shown)  # and activation maps
    assert all(f"id {each.image}, loss {each.loss:.2f}" in text for each in shown)
    assert "Loss and mAP of each epoch" in page and "truncated" in text
    assert "onfus" not in text  # of pairs of classes there is nothing to tell
    assert "<script" not in page and NASTY in text


def test_what_was_not_found_has_no_section(release: LoadedRelease) -> None:
    page = report.html(evaluation(release, images=30, strength=30.0)).decode()
    assert "Suspected label errors" not in page and "Classes" in page


@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_all_of_it_without_scrolling_sideways(
    tagged: Evaluation, width: int, tmp_path: Path
) -> None:
    wide, title, seen, images, plots = measured(report.html(tagged), width, tmp_path)
    assert isinstance(tagged.metrics, MultilabelMetrics)
    assert int(wide) <= width and title == "birds@v1 on eval"
    pictures = 2 * (len(tagged.metrics.worst_mistakes) + len(tagged.metrics.label_errors))
    assert int(seen) == int(images) == pictures and int(plots) == 2
