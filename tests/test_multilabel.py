"""Several classes per image: from a table to mean average precision."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score
from support.datasets import COLOURS, SEVERAL, SMALL, WANTED
from support.loop_worker import CLASSES, FixedBatches, new_state, nothing, settled
from support.plain_run import plain_run
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from torch.nn import functional as F

from effnet_ray import Placement, Recipe
from effnet_ray.data import feature_cache, manifest as manifests, train_labels
from effnet_ray.data.chunks import ChunkTask, Dataset, load_chunks
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.errors import DatasetError, RecipeError, ReleaseError
from effnet_ray.packing import duplicates, report, splits
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.release.store import ModelStore
from effnet_ray.sweep.tune import tune
from effnet_ray.train import checkpoint
from effnet_ray.train.average_precision import mean_average_precision
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.evaluation import EvalResult, epoch_report
from effnet_ray.train.loop import fit
from effnet_ray.train.loss import losses
from effnet_ray.train.metric_definitions import EVAL_TOP1, EVAL_TOP5
from effnet_ray.train.metrics import MetricSums, ScoreCollector
from effnet_ray.train.run_record import Result


def stripes(shown: list[str], number: int) -> bytes:
    """A PNG of 40 px with a stripe of every colour shown; no two of different number are equal."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[0, :8, 0] = np.unpackbits(np.uint8([number]))
    for place, name in enumerate(sorted(shown)):
        pixels[10 * place + 4 : 10 * place + 12] = COLOURS[name]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def images(count: int) -> list[tuple[str, bytes, list[str]]]:
    """Name, bytes and labels of so many images."""
    shown = [WANTED[number % len(WANTED)] for number in range(count)]
    return [(f"{n:03d}.png", stripes(own, n), own) for n, own in enumerate(shown)]


def as_table(folder: Path, count: int) -> str:
    """A CSV whose labels are told with a bar between them."""
    folder.mkdir()
    rows = ["path,label"]
    for name, data, shown in images(count):
        (folder / name).write_bytes(data)
        rows.append(f"{name},{'|'.join(shown)}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "table.csv")


def as_parquet(folder: Path, count: int) -> str:
    """Hugging Face's layout: numbers in a list, and what they are called."""
    folder.mkdir()
    names = sorted(COLOURS)
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    told = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    rows = [
        {"image": {"bytes": data, "path": name}, "label": [names.index(n) for n in shown]}
        for name, data, shown in images(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(told), folder / "a.parquet")
    return str(folder)


def as_tar(folder: Path, count: int) -> str:
    """WebDataset: a list in each image's JSON."""
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data, shown in images(count):
            told = json.dumps({"label": shown}).encode()
            for member, content in ((name, data), (name.replace("png", "json"), told)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder)


SOURCES = {"table": as_table, "parquet": as_parquet, "tar": as_tar}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> str:
    """72 images of stripes, packed."""
    folder = tmp_path_factory.mktemp("coloured")
    pack(as_table(folder / "source", 72), str(folder / "packed"), SEVERAL)
    return str(folder / "packed")


# --- packing


@pytest.mark.parametrize("form", SOURCES)
def test_every_form_of_a_source_tells_the_same_labels(tmp_path: Path, form: str) -> None:
    manifest = pack(SOURCES[form](tmp_path / "source", 36), str(tmp_path / "out"), SEVERAL)
    assert manifest.classes == ("blue", "green", "red")
    assert manifest.task == manifests.load(str(tmp_path / "out")).task == "multilabel"
    actual = {}
    for shard in (s for shards in manifest.splits.values() for s in shards):
        for row in pq.read_table(tmp_path / "out" / shard.path).to_pylist():
            name = row["image"]["path"].rpartition("#")[2].rpartition("/")[2]
            actual[name] = [manifest.classes[label] for label in row["label"]]
    assert actual == {name: sorted(shown) for name, _, shown in images(36)}


def test_every_class_is_in_every_split_and_counted_for_each_of_its_images(coloured: str) -> None:
    told = report.load(coloured)
    assert told.images["eval"] and min(told.images["eval"]) > 0
    totals = np.sum([told.images[split] for split in told.images], axis=0)
    assert totals.tolist() == [36, 24, 48]  # blue, green, red of 72


@given(st.lists(st.sets(st.integers(0, 5)), min_size=4, max_size=80), st.integers(0, 99))
def test_an_image_is_divided_by_its_rarest_class_and_nothing_is_too_small(
    sets: list[set[int]], seed: int
) -> None:
    unit = np.arange(len(sets))
    classes = tuple("abcdef")
    given = np.full(len(sets), splits.UNASSIGNED)
    number, names = splits.strata([sorted(s) for s in sets], unit, given, classes, min_units=3)
    counts = [sum(k in own for own in sets) for k in range(6)]
    for own, stratum in zip(sets, number.tolist(), strict=True):
        rarest = min(own, key=lambda k: (counts[k], k), default=6)
        assert stratum == rarest or np.count_nonzero(number == rarest) == 0
    sizes = np.bincount(number, minlength=7)
    assert all(size == 0 or size >= 3 for size in sizes)
    split = splits.assign(number, unit, given, names, {"eval": 0.2, "test": 0.1}, seed)
    assert set(split.tolist()) == {0, 1, 2}


def test_a_class_whose_images_have_their_split_already_is_not_too_small(tmp_path: Path) -> None:
    uri = Path(as_table(tmp_path / "source", 36))
    rows = uri.read_text().splitlines()
    rare = [f"{row}|rare,{'test' if n < 3 else 'train'}" if n < 4 else f"{row},train"
            for n, row in enumerate(rows[1:])]  # fmt: skip
    uri.write_text("\n".join([f"{rows[0]},split", *rare]) + "\n")
    manifest = pack(str(uri), str(tmp_path / "out"), replace(SEVERAL, split_column="split"))
    assert manifest.images["test"] == 3 and manifest.images["eval"] > 0


@pytest.mark.parametrize("told", [{"label_separator": ""}, {"task": "mulitlabel"}])
def test_a_packing_that_cannot_be_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(DatasetError, match="expected"):
        replace(SEVERAL, **told)


def test_equal_images_with_other_labels_are_told_by_name() -> None:
    seen = pa.table(
        {
            "path": ["a", "b"], "label": pa.array([[0, 1], []], pa.list_(pa.int64())),
            "digest": ["x", "x"], "phash": pa.array([0, 0], pa.uint64()), "reason": ["", ""],
        }
    )  # fmt: skip
    (pair,) = duplicates.duplicates_table(seen, np.asarray([0, 1]), ("cat", "dog")).to_pylist()
    assert (pair["label"], pair["other_label"]) == ("cat, dog", "no class")


@pytest.mark.parametrize(
    ("packing", "source", "message"),
    [
        (SEVERAL, "folders", "class folders, where each image has one class"),
        (Packing(), "parquet", "several labels for one image: pack with --task multilabel"),
        (Packing(), "tar", "several labels for one image: pack with --task multilabel"),
        (replace(SEVERAL, in_place=True), "parquet", "--in-place does not support"),
        (replace(SEVERAL, label_separator=";"), "table", None),
    ],
)
def test_what_cannot_be_several_classes_is_refused(
    tmp_path: Path, photographs: Path, packing: Packing, source: str, message: str | None
) -> None:
    uri = str(photographs) if source == "folders" else SOURCES[source](tmp_path / "source", 36)
    out = uri if packing.in_place else str(tmp_path / "out")
    if message is None:  # another separator than the table's: each set is one class
        assert "blue|green|red" in pack(uri, out, packing).classes
        return
    with pytest.raises(DatasetError, match=message):
        pack(uri, out, packing)


# --- reading


def dataset(data: str, recipe: Recipe) -> Dataset:
    spec = recipe.variant_spec.input_spec()
    return Dataset(manifests.load(data), data, recipe, replace(spec, resolution=32))


def test_a_chunk_has_a_row_of_zeros_and_ones_for_every_image(coloured: str) -> None:
    recipe = settled(task="multilabel", batch_size=8, micro_batch=8)
    blocks = list(load_chunks(dataset(coloured, recipe), [ChunkTask("train", 0, 0, 0, 0)]))
    actual = {
        i: own for block in blocks for i, own in zip(block["id"], block["label"], strict=True)
    }
    names = sorted(COLOURS)
    for image, row in actual.items():  # ids are in the order of the paths
        assert [names[k] for k in np.flatnonzero(row)] == sorted(WANTED[image % len(WANTED)])


def test_features_keep_rows_of_labels(tmp_path: Path) -> None:
    label = np.eye(3, dtype=np.uint8)
    group = FeatureRows(np.ones((3, 5), np.float16), label, np.arange(3), ["", "", ""])
    feature_cache.write(f"{tmp_path}/00000.parquet", [group])
    actual = feature_cache.read(f"{tmp_path}/00000.parquet", 0)
    assert actual.label.dtype == np.uint8 and (actual.label == label).all()


# --- loss and figures


def scored(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, 5, generator=draws) * 3).round()  # some are equal
    label = (torch.rand(count, 5, generator=draws) < 0.3).to(torch.uint8)
    return logits, label, (torch.rand(count, generator=draws) > 0.2).float()


@given(st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([0.0, 0.1]))
def test_the_loss_is_timms_binary_cross_entropy(count: int, seed: int, smoothing: float) -> None:
    logits, label, _ = scored(count, seed)
    actual = losses(logits, label, smoothing).mean()
    on, off = 1 - smoothing + smoothing / 5, smoothing / 5
    target = label.float() * (on - off) + off
    assert float(actual) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, target))
    )
    one = torch.arange(count) % 5
    ours = losses(logits, F.one_hot(one, 5), smoothing).mean()
    theirs = BinaryCrossEntropy(smoothing=smoothing)(logits, one)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_an_image_is_a_hit_where_a_class_of_its_own_stands_first(count: int, seed: int) -> None:
    logits, label, weight = scored(count, seed)
    first = [own[row.argmax()] for row, own in zip(logits, label, strict=True)]
    hits = sum(float(hit) * float(w) for hit, w in zip(first, weight, strict=True))
    tally = MetricSums.of(logits, label, weight)
    assert tally.share(EVAL_TOP1) * max(1, int(weight.sum())) == pytest.approx(hits, abs=1e-6)
    assert tally.share(EVAL_TOP5) * max(1, int(weight.sum())) == pytest.approx(
        float((label.any(1) * weight).sum()), abs=1e-6
    )


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_mean_ap_is_scikit_learns_over_classes_that_occur(count: int, seed: int) -> None:
    logits, label, weight = scored(count, seed)
    label[:, 3] = 0
    ranking = ScoreCollector(5, torch.device("cpu"))
    for first in range(0, count, 7):
        part = slice(first, first + 7)
        ranking.add(logits[part], label[part], weight[part])
    kept = weight > 0
    actual = [
        average_precision_score(label[kept, k], logits[kept, k])
        for k in range(5)
        if label[kept, k].any()
    ]
    assert mean_average_precision(ranking.over_workers()) == pytest.approx(
        np.mean(actual) if actual else 0.0
    )


def test_a_score_that_is_no_number_makes_mean_ap_none() -> None:
    ranking = ScoreCollector(2, torch.device("cpu"))
    ranking.add(torch.tensor([[0.0, torch.nan]]), torch.ones(1, 2), torch.ones(1))
    assert np.isnan(mean_average_precision(ranking.over_workers()))


def test_the_best_epoch_is_that_of_the_highest_mean_ap() -> None:
    def evaluation(top1: float, mean_ap: float) -> EvalResult:
        sums = torch.tensor([10, 10 * top1, 10, 10, 10, 0, 0], dtype=torch.float64)
        return EvalResult(MetricSums(sums), mean_ap)

    train = MetricSums.zero()
    first = epoch_report(0, 1, train, evaluation(0.9, 0.3), evaluation(0.1, 0.5))
    second = epoch_report(1, 2, train, evaluation(0.2, 0.6))
    assert first.averaged and (first.eval_map, first.eval_top1) == (0.5, 0.1)
    assert best([first, second]) == second


def test_releases_of_several_classes_are_compared_by_mean_ap(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for run, (top1, mean_ap) in {"a": (0.9, 0.5), "b": (0.1, 0.6), "c": (0.95, 0.55)}.items():
        metrics = {"best": {"eval_top1": top1, "eval_map": mean_ap}}
        files = {"metrics.json": json.dumps(metrics).encode(), "model.safetensors": run.encode()}
        store.publish("tags", files, {"run": run})
    assert [move.version for move in store.history("tags", "best")] == [1, 2]
    with pytest.raises(ReleaseError, match=r"eval mAP \(55.00%\) is lower than v2's \(60"):
        store.promote("tags@v3", "best")
    one = {"metrics.json": b'{"best": {"eval_top1": 1.0}}', "model.safetensors": b"d"}
    store.publish("tags", one, {"run": "d"})
    later = {"metrics.json": b'{"best": {"eval_map": 0.9}}', "model.safetensors": b"e"}
    store.publish("tags", later, {"run": "e"})
    assert [move.version for move in store.history("tags", "best")] == [1, 2, 5]
    with pytest.raises(ReleaseError, match="it has no eval mAP"):
        store.promote("tags@v4", "best")


# --- a run


def test_the_loop_learns_several_classes() -> None:
    recipe = settled(task="multilabel", epochs=6, lr=3e-3, batchnorm="train", micro_batch=8)
    reports: list[EpochReport] = []
    batches, state = FixedBatches(recipe), new_state(recipe)
    fit(state, recipe, batches.shape(), batches, on_step=nothing,
        on_epoch=lambda told, _: reports.append(told))  # fmt: skip
    assert reports[-1].train_loss < 0.8 * reports[0].train_loss
    assert all(told.eval_map is not None and 0 < told.eval_map <= 1 for told in reports)
    assert state.network.num_classes == CLASSES


def test_a_recipe_takes_its_task_from_the_data() -> None:
    def of(task: str | None, data: str) -> str | None:
        recipe = Recipe(weights="none", task=task)
        return recipe.resolved(
            recipe.variant_spec.input_spec(), workers=1, on_gpu=False, task=data
        ).task

    assert (of(None, "multilabel"), of(None, "multiclass")) == ("multilabel", "multiclass")
    assert of("multilabel", "multiclass") == "multilabel"
    with pytest.raises(RecipeError, match="any number of classes"):
        of("multiclass", "multilabel")
    with pytest.raises(RecipeError, match="class_weights or balance"):
        Recipe(weights="none", task="multilabel", balance=0.5)


def test_a_sweep_of_several_classes_is_refused(coloured: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it ranks trials by top-1"):
        tune(Recipe(weights="none"), Placement(), coloured, variants=["b0"], trials=1,
             runs=str(tmp_path))  # fmt: skip


def history(result: Result) -> list[EpochReport]:
    return checkpoint.open_checkpoint(result.checkpoint).history


def test_a_run_reports_the_same_mean_ap_on_1_and_2_workers(
    coloured: str, tmp_path: Path, weights_mirror: str
) -> None:
    recipe = replace(SMALL, weights="ns", lr=1e-4, head_cache=False)
    one, two = (
        plain_run(recipe, coloured, str(tmp_path), f"on-{n}", workers=n, mirror=weights_mirror)
        for n in (1, 2)
    )
    assert one.finished.eval_map and one.finished.summary().startswith("eval mAP")
    assert two.finished.eval_map == pytest.approx(one.finished.eval_map, abs=1e-4)
    assert [h.train_loss for h in history(two.finished)] == pytest.approx(
        [h.train_loss for h in history(one.finished)], abs=1e-4
    )


def test_images_of_one_class_may_be_learnt_as_if_they_had_several(
    digits: str, tmp_path: Path
) -> None:
    recipe = replace(SMALL, task="multilabel", epochs=1)
    result = plain_run(recipe, digits, str(tmp_path), "one", workers=2).finished
    assert result.eval_map and 0 < result.eval_map <= 1


def test_labels_of_one_class_are_not_read_from_lists(coloured: str) -> None:
    with pytest.raises(DatasetError, match="labels of type list"):
        train_labels.read_train_labels(manifests.load(coloured), coloured)
