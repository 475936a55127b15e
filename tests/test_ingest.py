"""The stream through Ray Data is the plan: in order, over windows, from any step on."""

import queue
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from laws import RECIPE

from effnet_ray.data import labels, manifest as manifests, stream as ingest
from effnet_ray.data.chunks import Block, ChunkTask, Dataset
from effnet_ray.data.class_balance import Labels
from effnet_ray.data.stream import Images, Stream
from effnet_ray.phases import evaluates

pytestmark = pytest.mark.ray


@pytest.fixture
def dataset(digits: str) -> Dataset:
    recipe = replace(RECIPE, epochs=3, limit=300, batch_size=16, micro_batch=4)
    recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)
    spec = replace(recipe.variant_spec.input_spec(), resolution=32)
    return Dataset(manifests.load(digits).limited(300), digits, recipe, spec)


def stream(dataset: Dataset, first_step: int = 0, rank: int = 0, workers: int = 1) -> Stream:
    return Stream(
        dataset, rank=rank, workers=workers, first_step=first_step, decode_tasks=2, prefetch_mb=64
    )


def all_steps(dataset: Dataset, source: Stream, first_step: int = 0) -> list[list[Images]]:
    per_epoch = dataset.plan.steps_per_epoch
    steps = []
    for epoch in range(first_step // per_epoch, dataset.recipe.epochs):
        skipped = max(0, first_step - epoch * per_epoch)
        steps += list(source.train(skipped))
        if evaluates(dataset.recipe, epoch):
            evaluated = [image for batch in source.eval() for image in batch.id]
            assert len(evaluated) == len(set(evaluated)) == dataset.eval_plan.images
    return steps


def test_small_windows_change_nothing_and_a_resumed_stream_is_the_tail(
    cluster: None, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = all_steps(dataset, stream(dataset))
    monkeypatch.setattr(ingest, "WINDOW_CHUNKS", 7)
    monkeypatch.setattr(ingest, "LEAD_CHUNKS", 3)
    monkeypatch.setattr(ingest, "_chunks_per_task", lambda *_: 3)  # blocks cross chunks' borders
    resumed = all_steps(dataset, stream(dataset, first_step=25), first_step=25)
    assert len(whole) == 3 * dataset.plan.steps_per_epoch == 57
    assert len(resumed) == len(whole) - 25
    for before, after in zip(whole[25:], resumed, strict=True):
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one.id, other.id)
            assert np.array_equal(one.image, other.image)  # the same views, too


def test_progressive_images_grow_and_stay_the_planned_ones(
    cluster: None, dataset: Dataset
) -> None:
    recipe = replace(dataset.recipe, progressive=0.6, image_size=64, limit=60)
    spec = replace(dataset.spec, resolution=64)
    small = replace(dataset, recipe=recipe, spec=spec, manifest=dataset.manifest.limited(60))
    whole = replace(small, recipe=replace(recipe, progressive=1.0))
    steps = zip(all_steps(small, stream(small)), all_steps(whole, stream(whole)), strict=True)
    pairs = [pair for grown, fixed in steps for pair in zip(grown, fixed, strict=True)]
    assert all(np.array_equal(one.id, other.id) for one, other in pairs)
    sizes = [one.image.shape[1] for one, _ in pairs if len(one.id)]
    assert sorted(set(sizes)) == [32, 48, 64] and sizes == sorted(sizes)


@pytest.mark.parametrize("first_step", [0, 25])
def test_an_evaluation_stands_in_the_stream_only_after_epochs_that_have_one(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, first_step: int
) -> None:
    """The rest stays as it is."""

    def tasks(eval_every: int) -> list[ChunkTask]:
        found = list[ChunkTask]()
        monkeypatch.setattr(ingest, "_blocks", lambda _, here, more, *__: found.extend(more) or [])
        stream(replace(dataset, recipe=replace(dataset.recipe, eval_every=eval_every)), first_step)
        return found

    always, seldom = tasks(1), tasks(2)
    assert {task.epoch for task in seldom if task.split == "eval"} == {1, 2}
    assert seldom == [task for task in always if task.split == "train" or task.epoch > 0]


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_stream_is_the_plan(
    cluster: None, dataset: Dataset, digits: str, balance: float
) -> None:
    zeros = Labels.of(labels.read(dataset.manifest, digits).values == 0, 2)
    recipe = replace(dataset.recipe, balance=balance)
    dataset = replace(dataset, recipe=recipe, labels=zeros)
    plan, manifest = dataset.plan, dataset.manifest
    ids = pq.read_table(f"{digits}/{manifest.splits['train'][0].path}")["id"].to_numpy()
    ends = np.cumsum(plan.row_groups)
    source = stream(dataset, rank=1, workers=3)
    seen = [np.concatenate([lane.id for lane in step]) for step in source.train(0)]
    list(source.eval())  # Ray Data's part has begun, and does not begin after the test
    chunks = [plan.chunk(0, lane=1, index=i) for i in range(plan.chunks_per_epoch)]
    planned = [
        ids[ends[group] - plan.row_groups[group] + row]
        for chunk in chunks
        for group, row, _ in chunk.tolist()
    ]
    assert (len(set(planned)) < len(planned)) == (balance > 0)
    assert np.concatenate(seen).tolist() == planned


@pytest.mark.parametrize("chunks_per_block", [1, 3, 7])
def test_the_next_window_starts_before_the_current_one_ends(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, chunks_per_block: int
) -> None:
    """However many chunks Ray Data puts into a block."""
    started: queue.Queue[int] = queue.Queue()

    def execute(dataset: Dataset, window: list[ChunkTask], *rest: int) -> Iterator[Block]:
        started.put(len(window))
        for some in batched(window, chunks_per_block):
            rows = np.concatenate([np.full(task.rows, task.epoch) for task in some])
            yield {"label": rows}

    monkeypatch.setattr(ingest, "_execute", execute)
    monkeypatch.setattr(ingest, "WINDOW_CHUNKS", 14)
    monkeypatch.setattr(ingest, "LEAD_CHUNKS", 7)
    tasks = [ChunkTask("train", n // 14, 0, n % 14, 0, rows=3 + n % 2) for n in range(3 * 14)]
    blocks = ingest._blocks(dataset, [], iter(tasks), 2, 64)
    window = sum(task.rows for task in tasks[:14])
    lead = sum(task.rows for task in tasks[7:14])
    left, begun = window, 0
    for epoch in range(3):
        while left > lead:
            left -= len(next(blocks)["label"])
        assert left > 0
        while begun < min(3, epoch + 2):
            assert started.get(timeout=20) == 14
            begun += 1
        left += window
    assert sum(len(block["label"]) for block in blocks) == left - window
    assert started.empty()


def batched(tasks: list[ChunkTask], size: int) -> list[list[ChunkTask]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]
