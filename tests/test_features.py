"""A frozen backbone's features are computed once, and training on them changes nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.laws import RECIPE
from support.loop_worker import random_batch
from support.plain_run import plain_run

from effnet_ray import Placement, Recipe, finetune, storage
from effnet_ray.data import feature_cache, manifest as manifests
from effnet_ray.data.chunks import ChunkTask, Dataset, load_chunks
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.ray_executor import RayExecutor
from effnet_ray.errors import DatasetError
from effnet_ray.model.network import build
from effnet_ray.train import events
from effnet_ray.train.feature_tasks import feature_folders, missing_shards, required_views
from effnet_ray.train.run_record import Result
from effnet_ray.train.run_setup import RunSetup, set_up_run

HEAD = replace(RECIPE, weights="ns", unfreeze="head", head_epochs=None, lr=1e-3)
"""Two epochs of the head alone."""


def settled(**given: Any) -> Recipe:
    recipe = replace(HEAD, **given)
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


def dataset(digits: str, kept: Path, **given: Any) -> Dataset:
    recipe = settled(**given)
    spec = replace(recipe.variant_spec.input_spec(), resolution=32)
    manifest = manifests.load(digits).limited(recipe.limit)
    return Dataset(manifest, digits, recipe, spec, features=str(kept), backbone="0" * 64)


def group(rows: int = 3, first: int = 0) -> FeatureRows:
    draws = np.random.default_rng(first)
    return FeatureRows(
        feature=draws.normal(size=(rows, 8)).astype(np.float16),
        label=np.arange(rows) % 2,
        id=np.arange(first, first + rows),
        bad=["", *[json.dumps({"reason": "torn"})] * (rows - 1)],
    )


def test_logits_of_features_are_those_of_the_images() -> None:
    recipe = settled(dropout=0.0)
    network = build(recipe, recipe.variant_spec.input_spec(), 4).eval().requires_grad_(False)
    images = random_batch(1, 5, 64).image
    assert torch.equal(network(network.features(images)), network(images))
    whole = network.backbone((images - network.mean) / network.std)
    assert torch.equal(network(images), whole)  # timm's own way through its network
    kept = network.features(images).half()
    assert torch.allclose(network(kept), whole, atol=1e-3)


@pytest.mark.parametrize("rows", [5, 64, 150])
def test_features_are_read_as_they_were_written(tmp_path: Path, rows: int) -> None:
    """In row groups of our own, whatever the parts."""
    uri = str(tmp_path / "00000.parquet")
    parts = [group(3), group(rows, first=3)]
    feature_cache.write(uri, parts)
    read = [
        feature_cache.read(uri, number)
        for number in range(-(-(rows + 3) // feature_cache.ROW_GROUP_ROWS))
    ]
    assert all(len(part.label) <= feature_cache.ROW_GROUP_ROWS for part in read)
    assert {part.feature.dtype for part in read} == {np.dtype(np.float16)}
    for name in ("feature", "label", "id", "bad"):
        before = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(np.concatenate([getattr(part, name) for part in read]), before)
    assert feature_cache.bad_images(uri) == 2 + rows - 1


def test_a_file_written_anew_is_read_as_it_is_now(tmp_path: Path) -> None:
    uri = str(tmp_path / "00000.parquet")
    feature_cache.write(uri, [group(100)])
    feature_cache.read(uri, 0)
    whole = replace(group(100), bad=[""] * 100)
    feature_cache.write(uri, [whole])
    assert np.array_equal(feature_cache.read(uri, 1).feature, whole.feature[64:])


def test_a_lanes_empty_chunk_is_none(digits: str, tmp_path: Path) -> None:
    requested = dataset(digits, tmp_path, limit=513, batch_size=64, micro_batch=32)
    chunks = [(lane, n) for lane in range(2) for n in range(requested.plan.chunks_per_epoch)]
    empty = [chunk for chunk in chunks if not requested.plan.chunk_rows(*chunk)]
    assert empty
    for lane, chunk in empty:
        task = ChunkTask("train", 0, lane, chunk, 0, cached=True)
        assert list(load_chunks(requested, [task])) == []


def test_a_damaged_file_says_what_to_delete(tmp_path: Path) -> None:
    uri = tmp_path / "key/00000.parquet"
    feature_cache.write(str(uri), [group(40)])
    raw = bytearray(uri.read_bytes())
    raw[len(raw) // 3] ^= 1
    uri.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"delete .*key, and run the same command again"):
        feature_cache.read(str(uri), 0)


def test_a_folder_is_whole_when_it_says_so_and_its_files_are_there(tmp_path: Path) -> None:
    uri, name = str(tmp_path), "00000.parquet"
    feature_cache.write(storage.join(uri, name), [group()])
    assert feature_cache.read_record(uri) is None
    feature_cache.write_record(uri, [name])
    actual = feature_cache.read_record(uri)
    assert actual and actual[name]["bad"] == 2
    (tmp_path / name).write_bytes(b"short")
    assert feature_cache.read_record(uri) is None
    (tmp_path / feature_cache.RECORD).write_text("{")
    assert feature_cache.read_record(uri) is None


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"lr": 0.5, "epochs": 7, "batch_size": 4, "opt": "sgd", "dropout": 0.1}, True),
        ({"seed": 5, "crop_scale": 0.9, "aa": "rand", "flip": 1.0}, True),
        ({"variant": "b1"}, False),
        ({"limit": 43}, False),
        ({"precision": "bfloat16"}, False),
    ],
)
def test_the_key_of_plain_views_is_all_that_they_follow_from(
    digits: str, tmp_path: Path, change: dict[str, Any], same: bool
) -> None:
    one, other = dataset(digits, tmp_path), dataset(digits, tmp_path, **change)
    assert (one.features_uri("train", None) == other.features_uri("train", None)) is same


def test_the_key_of_drawn_views_is_also_what_draws_them(digits: str, tmp_path: Path) -> None:
    one = dataset(digits, tmp_path)
    keys = {
        one.features_uri("eval", None),
        *(one.features_uri("train", view) for view in (None, 1, 2)),
    }
    for change in ({"seed": 5}, {"crop_scale": 0.9}, {"aa": "rand"}, {"flip": 1.0}):
        keys.add(dataset(digits, tmp_path, **change).features_uri("train", 1))
    keys.add(replace(one, backbone="1" * 64).features_uri("train", 1))
    assert len(keys) == 9


CHANGED = {"aa": "rand", "crop_scale": 0.9, "crop_ratio": 1.5, "flip": 1.0}
"""Another value for each field that is marked as changing a view."""


def test_every_field_marked_as_changing_a_view_changes_the_key_of_drawn_views(
    digits: str, tmp_path: Path
) -> None:
    assert {f.name for f in fields(Recipe) if f.metadata.get("changes_view")} == CHANGED.keys()
    first = dataset(digits, tmp_path)
    for name, value in CHANGED.items():
        other = dataset(digits, tmp_path, **{name: value})
        assert other.features_uri("train", 1) != first.features_uri("train", 1)
        assert other.features_uri("train", None) == first.features_uri("train", None)


def test_the_key_of_a_recipe_never_changes() -> None:
    recipe = Recipe(weights="ns", image_size=64, aa="rand", seed=3)
    spec = recipe.variant_spec.input_spec()
    recipe = recipe.resolved(spec, workers=1, on_gpu=False)
    manifest = cast(Manifest, SimpleNamespace(fingerprint="1" * 64))

    def key(view: int | None) -> str:
        return feature_cache.folder(
            "",
            backbone="0" * 64,
            manifest=manifest,
            recipe=recipe,
            spec=spec,
            split="train",
            view=view,
        )

    assert (key(None), key(1)) == ("/6fbbf9e66a9ff57c", "/766659b6b6890bbd")
    centre, spec = key(None), replace(spec, crop_mode="squash")
    assert key(None) != centre


def test_a_run_wants_each_of_its_views_once() -> None:
    assert required_views(settled(epochs=3)) == [("train", None), ("eval", None)]
    three = [("train", None), ("train", 1), ("train", 2), ("eval", None)]
    assert required_views(settled(epochs=3, head_views=8)) == three
    assert required_views(settled(head_cache=False)) == []
    assert required_views(replace(settled(), head="trained", unfreeze="all", head_epochs=0)) == []


def test_what_is_missing_are_the_shards_not_there_and_those_to_be_mended(
    digits: str, tmp_path: Path
) -> None:
    requested = dataset(digits, tmp_path)
    both = [("train", None), ("eval", None)]
    assert missing_shards(requested, feature_folders(requested), retry_bad=False) == {
        key: [0] for key in both
    }
    for split, view in both:
        uri = requested.features_uri(split, view)
        feature_cache.write(
            storage.join(uri, "00000.parquet"), [group(2 if split == "train" else 1)]
        )
    assert missing_shards(requested, feature_folders(requested), retry_bad=False) == {
        key: [] for key in both
    }  # but for the record
    for split, view in both:
        feature_cache.write_record(requested.features_uri(split, view), ["00000.parquet"])
    assert missing_shards(requested, feature_folders(requested), retry_bad=False) == {}
    assert missing_shards(requested, feature_folders(requested), retry_bad=True) == {
        ("train", None): [0]
    }


def test_a_chunk_of_features_has_the_rows_of_the_plan(digits: str, tmp_path: Path) -> None:
    requested = dataset(digits, tmp_path, limit=200)
    task = ChunkTask("train", 1, 2, 0, 0)
    images = merged(list(load_chunks(requested, [task])))
    rows = pq.read_table(f"{digits}/{requested.manifest.splits['train'][0].path}").slice(0, 200)
    ids, labels = rows["id"].to_numpy(), rows["label"].to_numpy()
    sizes = requested.manifest.splits["train"][0].row_groups
    made, first = [], 0
    for size in sizes:
        part = slice(first, first + size)
        stamp = np.repeat(ids[part, None], 4, axis=1).astype(np.float16)
        made.append(FeatureRows(stamp, labels[part], ids[part], [""] * size))
        first += size
    feature_cache.write(storage.join(requested.features_uri("train", None), "00000.parquet"), made)
    (kept,) = load_chunks(requested, [replace(task, cached=True)])
    for name in ("id", "label", "bad"):
        assert np.array_equal(kept[name], images[name])
    assert np.array_equal(kept["image"][:, 0], kept["id"].astype(np.float16))


def test_damaged_features_come_out_of_the_stream_as_a_sentence(
    digits: str, tmp_path: Path
) -> None:
    requested = dataset(digits, tmp_path)
    feature_cache.write(
        storage.join(requested.features_uri("train", None), "00000.parquet"), [group(44)]
    )
    (file,) = tmp_path.rglob("*.parquet")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 1
    file.write_bytes(raw)
    tasks = iter([ChunkTask("train", 0, 0, 0, 0, 11, cached=True)])
    with pytest.raises(DatasetError, match=r"^features in .* cannot be read") as refused:
        list(RayExecutor(decode_tasks=1, prefetch_mb=64)(requested, tasks))
    assert "\n" not in str(refused.value)


def merged(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


# --- on Ray


class Ear:
    """Counts the images whose features were computed."""

    def __init__(self) -> None:
        self.computed = 0

    def __call__(self, event: events.Event) -> None:
        """Hear of it."""
        if isinstance(event, events.ComputingFeatures) and event.done == event.images:
            self.computed += event.images


@pytest.fixture
def go(
    cluster: None, digits: str, tmp_path: Path, weights_mirror: str
) -> Callable[..., tuple[Result, int]]:
    def run(name: str, workers: int = 2, data: str = digits, **given: Any) -> tuple[Result, int]:
        ear, placement = Ear(), Placement(workers=str(workers), audit=True, max_bad_fraction=0.2)
        runs, recipe = str(tmp_path / "runs"), replace(HEAD, **given)
        result = finetune(
            recipe, placement, data, runs=runs, name=name, mirror=weights_mirror, on_event=ear
        )
        return result, ear.computed

    return run


def weights(result: Result) -> dict[str, torch.Tensor]:
    return load_file(Path(result.checkpoint) / "model.safetensors")


def history(result: Result) -> list[float]:
    record = json.loads((Path(result.checkpoint) / "checkpoint.json").read_text())
    return [report[name] for report in record["history"] for name in ("train_loss", "eval_loss")]


def audit(result: Result) -> set[tuple[Any, ...]]:
    rows = pq.read_table(f"{result.run_uri}/audit").to_pydict()
    return set(zip(*(rows[name] for name in ("epoch", "step", "id", "weight")), strict=True))


@pytest.mark.ray
def test_a_run_by_features_is_the_run_by_images_and_the_next_computes_none(
    go: Callable[..., tuple[Result, int]], digits: str, tmp_path: Path, weights_mirror: str
) -> None:
    """On Ray by features, which it computes; then in plain processes by them and by images."""
    cold, computed = go("cold", head_views=2)
    assert computed == 2 * 44 + 44
    runs, recipe = str(tmp_path / "runs"), replace(HEAD, head_views=2)
    placement = Placement(workers="3")
    setup = set_up_run(recipe, placement, digits, runs=runs, name="warm", mirror=weights_mirror)
    assert isinstance(setup, RunSetup)
    assert (
        missing_shards(setup.job.dataset, feature_folders(setup.job.dataset), retry_bad=True) == {}
    )
    warm = plain_run(recipe, digits, runs, "warm", workers=2, mirror=weights_mirror).finished
    off = plain_run(
        replace(recipe, head_cache=False), digits, runs, "off", workers=1, mirror=weights_mirror
    ).finished
    assert audit(cold) == audit(warm) == audit(off)
    assert history(warm) == pytest.approx(history(cold), abs=1e-4)
    assert history(off) == pytest.approx(history(cold), abs=1e-3)
    head = "classifier.weight"
    assert torch.allclose(weights(off)[head], weights(cold)[head], atol=1e-3)
    body = [name for name in weights(cold) if not name.startswith("classifier")]
    assert all(torch.equal(weights(cold)[name], weights(off)[name]) for name in body)


@pytest.mark.ray
@pytest.mark.long
def test_an_image_that_could_not_be_read_is_looked_at_again_by_the_next_run(
    go: Callable[..., tuple[Result, int]],
    digits: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a data set too large to be verified before a run."""
    monkeypatch.setattr(manifests, "FULL_CHECK_BYTES", 0)
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    (shard,) = (data / "train").glob("*.parquet")
    whole = shard.read_bytes()
    row = pq.read_table(shard).slice(5, 1).to_pylist()[0]
    torn = bytearray(whole)
    torn[whole.index(row["image"]["bytes"]) + 40] ^= 1
    shard.write_bytes(torn)
    first, computed = go("torn", data=str(data))
    assert first.quarantined == 1 and computed == 44 + 44
    assert {weight for _, _, image, weight in audit(first) if image == row["id"]} == {0.0}
    shard.write_bytes(whole)
    second, computed = go("mended", data=str(data))
    assert second.quarantined == 0 and computed == 44
