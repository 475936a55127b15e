"""Evaluating a release gives the metrics of training, on any number of workers, and a page."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.datasets import copied
from support.evaluations import everything, no_ray
from support.laws import RECIPE
from support.plain_run import plain_run
from support.releases import released

from effnet_ray import Placement
from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.cli.models import models_job
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import DatasetError, EvaluationError, RecipeError, ReleaseError
from effnet_ray.inference import eval_inputs, evaluate as evaluating, report
from effnet_ray.inference.evaluate import Evaluation, ScoringActor, decode_scored, evaluate
from effnet_ray.inference.multiclass import MulticlassMetrics, score_images
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release.store import ModelStore
from effnet_ray.runtime.inference_actors import MachineShare
from effnet_ray.train.batch import Batch
from effnet_ray.train.evaluation import evaluate as training_evaluate
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5

HOSTILE = "<script>document.title='hostile'</script>"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return released(tmp_path_factory.mktemp("released"))


# --- figures of a real run


@pytest.fixture(scope="module")
def judged(
    cluster: object, digits: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedRelease, float, float, list[Evaluation]]:
    """A release, top-1 and loss as training told them, and evaluations on 1 and 3 workers."""
    folder = tmp_path_factory.mktemp("judged")
    recipe = replace(RECIPE, limit=None, epochs=1, batch_size=32, micro_batch=16)
    result = plain_run(recipe, digits, str(folder), "judged", workers=2).finished
    release = load_release(release_run(result, ModelStore(f"{folder}/store")).uri, "")
    actual = [
        evaluate(release, digits, Placement(workers=str(n), cores=1), thumbnails=True)
        for n in (1, 3)
    ]
    return release, result.eval_top1, result.eval_loss, actual


@pytest.mark.ray
def test_figures_are_those_of_training_and_equal_on_any_number_of_workers(
    judged: tuple[LoadedRelease, float, float, list[Evaluation]],
) -> None:
    _, top1, loss, actual = judged
    for each in actual:
        assert (each.metrics.processed, each.metrics.share(EVAL_TOP1)) == (359, top1)
        assert each.metrics.loss == pytest.approx(loss, abs=1e-5)
        assert everything(each.metrics) == everything(actual[0].metrics)  # to the last digit


@pytest.mark.ray
def test_a_release_holds_the_figures_of_each_class_and_what_it_took(
    judged: tuple[LoadedRelease, float, float, list[Evaluation]],
) -> None:
    release, *_, actual = judged
    metrics = json.loads(Path(release.uri, "metrics.json").read_bytes())
    expected = [
        {
            "class": release.classes[each.index],
            "images": each.support,
            "precision": each.precision,
            "recall": each.recall,
            "f1": each.f1,
        }
        for each in actual[0].metrics.per_class
    ]
    assert metrics["per_class"] == expected
    cost = release.provenance["cost"]
    assert 0 < cost["device_seconds"] < 2 * cost["seconds"]


@pytest.mark.ray
def test_a_page_shows_them(
    judged: tuple[LoadedRelease, float, float, list[Evaluation]], tmp_path: Path
) -> None:
    _, top1, _, actual = judged
    page = " ".join(report.html(actual[0]).decode().split())
    assert f"{100 * top1:.2f} %" in page and page.count("data:image/jpeg;base64,") > 10
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


@pytest.mark.ray
def test_a_release_is_compared_on_the_same_images_and_promoted_only_if_it_is_better(
    judged: tuple[LoadedRelease, float, float, list[Evaluation]], digits: str
) -> None:
    release, top1, *_ = judged
    store, name = str(Path(release.uri).parents[1]), "judged"
    publish_with_wrong_names(release, store)
    flags = ["--store", store, "--workers", "1"]
    compared = evaluate_job(
        ["--model", f"{name}@v1", "--against", f"{name}@v2", "--data", digits, *flags]
    )
    against = compared["against"]
    assert against["images"] == 359 and against["p_value"] < 1e-3
    assert against["better"] - against["worse"] == round(359 * against["difference"]) > 20
    low, high = compared["eval_top1_interval"]
    assert low < top1 < high

    def promote(version: int, alias: str, *more: str) -> dict[str, Any]:
        return models_job(["promote", f"{name}@v{version}", alias, *flags[:2], *more])

    better = ["--if-better", *flags[2:]]
    assert promote(2, "start")["version"] == 2
    moved = promote(1, "start", *better)
    assert moved["version"] == 1 and moved["compared"]["better"] == against["better"]
    with pytest.raises(EvaluationError, match=r"judged@v2 is not better than judged@v1 on the"):
        promote(2, "start", *better)
    assert promote(1, "start", *better)["version"] == 1  # it is there already
    assert promote(2, "new", *better)["version"] == 2  # nothing to compare with


def publish_with_wrong_names(release: LoadedRelease, store: str) -> None:
    """Publish the next version: the same network, whose classes have each other's names."""
    folder = Path(release.uri)
    record = json.loads((folder / "release.json").read_text())
    files = {file: (folder / file).read_bytes() for file in record["files"]}
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps(
        config | {"label_names": config["label_names"][::-1]}
    ).encode()
    ModelStore(store).publish(record["name"], files, {"run": "other", "data": record["data"]})


@pytest.mark.ray
def test_an_evaluation_says_how_unknown_pictures_are_told(
    judged: tuple[LoadedRelease, float, float, list[Evaluation]], digits: str, tmp_path: Path
) -> None:
    release = judged[0]
    for seed in range(30):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
    page = tmp_path / "report.html"
    actual = evaluate_job(
        ["--model", release.uri, "--data", digits, "--unknown-source", str(tmp_path),
         "--report", str(page), "--workers", "1"]
    )  # fmt: skip
    assert actual["unknown_images"] == 30 and 0.0 <= actual["unknown_flagged"] <= 1.0
    assert 0.5 < actual["unknown_auroc"] <= 1.0
    assert actual["called_unknown"] == pytest.approx(0.05, abs=0.03)  # of its own eval images
    assert f"AUROC {actual['unknown_auroc']:.3f}" in " ".join(page.read_text().split())


# --- the same steps in this process

NAMES = ("dahlia", "garden", "roof", "shed")


def alone(release: LoadedRelease, data: Path) -> MulticlassMetrics:
    """An evaluation without Ray in between."""
    split = evaluating.open_inputs(release, str(data), "eval", thumbnails=True)
    actor = ScoringActor(release.uri, release.sha256, MachineShare())
    figures = MulticlassMetrics(len(release.classes))
    for pieces in split.read_units(4):
        for row in evaluating.preprocessed_rows(split, [pieces]):
            for block in actor(row):
                for scored in decode_scored(block):
                    figures.add(scored)
    evaluating.check_metrics(release, figures, split)
    return figures


@pytest.fixture(scope="module")
def named(release: LoadedRelease) -> LoadedRelease:
    """A release that knows the photographs' classes, and one more."""
    return replace(release, classes=NAMES)


def test_figures_are_those_of_training_time_evaluation(named: LoadedRelease, packed: Path) -> None:
    split = evaluating.open_inputs(named, str(packed), "eval", thumbnails=False)

    def batches() -> Iterator[Batch]:
        for pieces in split.read_units(4):
            for views, about in eval_inputs.preprocess(split, pieces):
                image = torch.from_numpy(views).permute(0, 3, 1, 2)
                yield Batch(image, torch.tensor(about["label"]), torch.ones(len(image)))

    (trained,) = training_evaluate([named.network], batches())
    tally = trained.sums
    figures = alone(named, packed)
    assert (figures.share(EVAL_TOP1), figures.share(EVAL_TOP5), figures.images) == (
        tally.share(EVAL_TOP1),
        tally.share(EVAL_TOP5),
        tally.images,
    )
    assert figures.loss == pytest.approx(tally.loss, rel=1e-5)  # float32, in another order


def test_images_are_preprocessed_as_the_release_says(named: LoadedRelease, packed: Path) -> None:
    spec = replace(named.spec, crop=0.6, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    inputs = evaluating.open_inputs(replace(named, spec=spec), str(packed), "eval", False)
    assert inputs.spec == spec != named.recipe.variant_spec.input_spec()


def test_mistakes_and_only_they_bring_thumbnails(named: LoadedRelease, packed: Path) -> None:
    figures = alone(named, packed)
    wrong = sum(images for *_, images in figures.confused_pairs)
    assert 0 < wrong == len(figures.worst_mistakes) and all(
        each.thumbnail for each in figures.worst_mistakes
    )
    split = evaluating.open_inputs(named, str(packed), "eval", thumbnails=True)
    ((row, *_),) = [
        list(evaluating.preprocessed_rows(split, [pieces])) for pieces in split.read_units(64)
    ]
    (block,) = ScoringActor(named.uri, named.sha256, MachineShare())(row)
    said = next(decode_scored(block))
    right = said["label"] == said["predicted"]
    assert [bool(small) for small in said["thumbnail"]] == (~right).tolist()


def test_classes_are_counted_under_their_names(
    named: LoadedRelease, packed: Path, tmp_path: Path
) -> None:
    data = copied(packed, tmp_path / "data")
    turned = replace(manifests.load(str(data)), classes=("roof", "dahlia", "garden"))
    manifests.write(turned, str(data))
    labels = pq.read_table(packed / "eval/00000.parquet")["label"].to_pylist()
    expected = {name: labels.count(at) for at, name in enumerate(turned.classes)} | {"shed": 0}
    actual = {NAMES[one.index]: one.support for one in alone(named, data).per_class}
    assert actual == expected


def torn(packed: Path, to: Path, rows: slice, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set, too large to be verified before it is used, with bytes flipped in images."""
    monkeypatch.setattr(manifests, "FULL_CHECK_BYTES", 0)
    data = copied(packed, to)
    shard = data / "eval/00000.parquet"
    raw = shard.read_bytes()
    for row in pq.read_table(shard).to_pylist()[rows]:
        whole = row["image"]["bytes"]  # of the smallest the shard's statistics have a copy
        raw = raw.replace(whole, whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    shard.write_bytes(raw)
    return data


def test_a_torn_image_is_named_and_counts_for_nothing(
    named: LoadedRelease, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = alone(named, torn(packed, tmp_path / "data", slice(2, 3), monkeypatch))
    row = pq.read_table(packed / "eval/00000.parquet").to_pylist()[2]
    assert {image: path for image, (path, _) in figures.unreadable.items()} == {
        row["id"]: row["image"]["path"]
    }
    assert (figures.processed, figures.images, sum(figures.confusion.values())) == (6, 5, 5)


def test_where_nothing_can_be_read_there_are_no_figures(
    named: LoadedRelease, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match="none of the 6 eval images"):
        alone(named, torn(packed, tmp_path / "data", slice(None), monkeypatch))


def test_a_network_that_says_nothing_finite_is_refused(named: LoadedRelease, packed: Path) -> None:
    split, figures = (
        evaluating.open_inputs(named, str(packed), "eval", False),
        MulticlassMetrics(len(NAMES)),
    )
    said = score_images(np.full((6, 4), np.nan, np.float32), np.zeros(6, np.int64))
    texts = {name: np.asarray([""] * 6, object) for name in ("path", "error", "thumbnail", "map")}
    figures.add(said | texts | {"image": np.arange(6)})
    with pytest.raises(ReleaseError, match="NaN or infinite logits"):
        evaluating.check_metrics(named, figures, split)


# --- what is refused before Ray


def test_classes_that_the_release_does_not_know_are_named(
    release: LoadedRelease, packed: Path
) -> None:
    with pytest.raises(DatasetError, match=r"3 classes that birds@v1 does not have \('dahlia'"):
        evaluate(release, str(packed), Placement(), connect=no_ray)


def test_classes_may_stand_in_another_order_and_some_be_missing() -> None:
    assert eval_inputs.match_classes(("a", "b", "c"), ("c", "a"), "x@v1") == (2, 0)


def test_a_split_that_is_not_there_is_named(release: LoadedRelease, packed: Path) -> None:
    with pytest.raises(DatasetError, match="choose --split from train, eval"):
        evaluate(release, str(packed), Placement(), split="test", connect=no_ray)


def test_images_of_several_classes_are_refused(
    release: LoadedRelease, packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(packed, tmp_path / "several")
    manifest = replace(manifests.load(str(packed)), task="multilabel")
    manifests.write(manifest, str(tmp_path / "several"))
    with pytest.raises(DatasetError, match=r"trained with one class per image, .* any number"):
        evaluate(release, str(tmp_path / "several"), Placement(), connect=no_ray)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "was altered"),
        ("config.json", "was altered"),
        ("release.json", "was altered|is not valid JSON"),
    ],
)
def test_a_release_that_was_altered_is_not_opened(tmp_path: Path, name: str, message: str) -> None:
    path = Path(released(tmp_path).uri) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ReleaseError, match=message):
        load_release(str(path.parent), "")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "birds@v9"], "is not in"),
        (["--model", "birds@champion"], "is not in"),
        (["--model", "../birds@v1"], "does not exist"),
        (["--model", "birds@v1", "--report", "page.txt"], "expected a file name"),
        (["--model", "birds@v1", "--examples", "-1"], "0 or more"),
        (["--model", "birds@v1", "--data", "nowhere"], "no data set at"),
    ],
)
def test_mistakes_are_one_sentence(
    refused: object, tmp_path: Path, flags: list[str], says: str
) -> None:
    released(tmp_path)
    assert says in refused("--store", str(tmp_path / "store"), *flags, job=evaluate_job)  # type: ignore[operator]


# --- the page


def hostile(release: LoadedRelease, packed: Path) -> Evaluation:
    """An evaluation of classes and files that are called by hostile names."""
    names = (HOSTILE, *release.classes[1:])
    figures = MulticlassMetrics(len(names), 8)
    label, logits = [0, 1, 2, 3], [[0.0, 3, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [9, 0, 0, 0]]
    said = score_images(np.asarray(logits, np.float32), np.asarray(label, np.int64))
    texts = {
        "path": [HOSTILE] * 4,
        "error": ["", "", HOSTILE, ""],
        "thumbnail": [""] * 4,
        "map": [""] * 4,
    }
    output = {name: np.asarray(column, object) for name, column in texts.items()}
    figures.add(said | output | {"image": np.arange(4)})
    manifest = manifests.load(str(packed))
    return Evaluation(replace(release, classes=names), manifest, HOSTILE, "eval", figures)


def test_names_are_text_and_nothing_else(release: LoadedRelease, packed: Path) -> None:
    page = report.html(hostile(release, packed)).decode()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 3
    assert "default-src 'none'" in page


def test_quarantined_images_are_named_and_do_not_count(
    release: LoadedRelease, packed: Path
) -> None:
    actual = hostile(release, packed)
    assert (actual.metrics.processed, actual.metrics.images, len(actual.metrics.unreadable)) == (
        4,
        3,
        1,
    )


def test_the_packed_rows_are_what_is_judged(packed: Path, tmp_path: Path) -> None:
    manifest = manifests.load(str(packed))
    split = eval_inputs.EvalInputs(
        manifest, str(packed), "eval", released(tmp_path).spec, (0, 1, 2)
    )
    pieces = [piece for group in split.read_units(4) for piece in group]
    ids = [
        i
        for group in split.read_units(4)
        for _, about in eval_inputs.preprocess(split, group)
        for i in about["image"]
    ]
    shard = manifest.splits["eval"][0].path
    assert ids == pq.read_table(packed / shard)["id"].to_pylist() and len(pieces) == 2


def test_a_split_is_judged_whatever_became_of_the_others(
    named: LoadedRelease, packed: Path, tmp_path: Path
) -> None:
    data = copied(packed, tmp_path / "data")
    shutil.rmtree(data / "train")
    assert alone(named, data).images == manifests.load(str(data)).images["eval"]
    with pytest.raises(DatasetError, match=r"train/\S+ .* is missing"):
        evaluating.open_inputs(named, str(data), "train", thumbnails=False)


def test_what_cannot_be_trained_on_can_be_judged(
    named: LoadedRelease, packed: Path, tmp_path: Path
) -> None:
    data = copied(packed, tmp_path / "data")
    whole = manifests.load(str(data))
    manifests.write(replace(whole, splits={"eval": whole.splits["eval"]}), str(data))
    shutil.rmtree(data / "train")
    assert alone(named, data).images == whole.images["eval"]
    with pytest.raises(DatasetError, match="has no train images"):
        manifests.check_trainable(manifests.load(str(data)), str(data))


@pytest.mark.parametrize("report", ["s3://out.html", "folder.html", "out.txt"])
def test_a_page_that_could_not_be_written_is_refused(
    release: LoadedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RecipeError, match=r"report is .* expected"):
        evaluate_job(["--model", release.uri, "--data", "nowhere", "--report", report])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]
