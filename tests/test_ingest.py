"""The stream through Ray Data is the plan: in order, over windows, from any step on."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.laws import RECIPE

from effnet_ray.data import manifest as manifests, ray_executor, train_labels
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.class_balance import Labels
from effnet_ray.data.ray_executor import RayExecutor
from effnet_ray.data.stream import Images, Stream
from effnet_ray.phases import evaluates

pytestmark = pytest.mark.ray


@pytest.fixture
def dataset(digits: str) -> Dataset:
    recipe = replace(RECIPE, epochs=3, limit=300, batch_size=16, micro_batch=4)
    recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)
    spec = replace(recipe.variant_spec.input_spec(), resolution=32)
    return Dataset(manifests.load(digits).limited(300), digits, recipe, spec)


def stream(
    dataset: Dataset, first_step: int = 0, rank: int = 0, workers: int = 1, **windows: int
) -> Stream:
    local_chunks = len(dataset.plan.workers_lanes(rank, workers))
    execute = RayExecutor(2, 64, local_chunks, **windows)
    return Stream(dataset, rank=rank, workers=workers, first_step=first_step, execute=execute)


def all_steps(dataset: Dataset, source: Stream, first_step: int = 0) -> list[Images]:
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
    cluster: None, dataset: Dataset
) -> None:
    whole = all_steps(dataset, stream(dataset))
    # Blocks cross chunks' borders.
    small = {"window_chunks": 7, "lead_chunks": 3, "chunks_per_task": 3}
    resumed = all_steps(dataset, stream(dataset, first_step=25, **small), first_step=25)
    assert len(whole) == 3 * dataset.plan.steps_per_epoch == 57
    assert len(resumed) == len(whole) - 25
    for before, after in zip(whole[25:], resumed, strict=True):
        assert np.array_equal(before.id, after.id)
        pixels = [np.concatenate(images.image) for images in (before, after)]
        assert np.array_equal(*pixels)  # the same views, too


def test_progressive_images_grow_and_stay_the_planned_ones(
    cluster: None, dataset: Dataset
) -> None:
    recipe = replace(dataset.recipe, progressive=0.6, image_size=64, limit=60)
    spec = replace(dataset.spec, resolution=64)
    small = replace(dataset, recipe=recipe, spec=spec, manifest=dataset.manifest.limited(60))
    whole = replace(small, recipe=replace(recipe, progressive=1.0))
    grown, fixed = all_steps(small, stream(small)), all_steps(whole, stream(whole))
    assert all(np.array_equal(a.id, b.id) for a, b in zip(grown, fixed, strict=True))
    sizes = [part.shape[1] for images in grown for part in images.image]
    assert sorted(set(sizes)) == [32, 48, 64] and sizes == sorted(sizes)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_stream_is_the_plan(
    cluster: None, dataset: Dataset, digits: str, balance: float
) -> None:
    zeros = Labels.of(train_labels.read_train_labels(dataset.manifest, digits).values == 0, 2)
    recipe = replace(dataset.recipe, balance=balance)
    dataset = replace(dataset, recipe=recipe, labels=zeros)
    plan, manifest = dataset.plan, dataset.manifest
    ids = pq.read_table(f"{digits}/{manifest.splits['train'][0].path}")["id"].to_numpy()
    ends = plan.split.ends
    source = stream(dataset, rank=1, workers=3)
    seen = [images.id for images in source.train(0)]
    list(source.eval())  # Ray Data's part has begun, and does not begin after the test
    chunks = [plan.chunk(0, lane=1, index=i) for i in range(plan.chunks_per_epoch)]
    planned = [
        ids[ends[group] - plan.split.sizes[group] + row]
        for chunk in chunks
        for group, row, _ in chunk.tolist()
    ]
    assert (len(set(planned)) < len(planned)) == (balance > 0)
    assert np.concatenate(seen).tolist() == planned


def test_an_execution_whose_blocks_wait_leaves_python_to_the_training_loop(
    cluster: None, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, paced = list[float](), ray_executor.PacedSteps.on_execution_step

    def count(self: ray_executor.PacedSteps, executor: object) -> None:
        steps.append(time.monotonic())
        paced(self, executor)

    monkeypatch.setattr(ray_executor.PacedSteps, "on_execution_step", count)
    large = replace(dataset, spec=replace(dataset.spec, resolution=224))
    execute = RayExecutor(1, 16, large.plan.lanes, chunks_per_task=1)
    source = Stream(large, rank=0, workers=1, first_step=0, execute=execute)
    next(source.train(0))
    time.sleep(3.0)  # decoding is ahead: 900 images weigh 135 MB
    begin, start = len(steps), time.monotonic()
    time.sleep(1.0)
    seconds = time.monotonic() - start
    assert 0 < len(steps) - begin <= seconds / ray_executor.STEP_S + 1


def test_overlapping_windows_share_one_limit_of_tasks(
    cluster: None, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    executors, running, together = set[Any](), list[int](), list[int]()

    def count(self: ray_executor.PacedSteps, executor: Any) -> None:
        executors.add(executor)
        topologies = [dict(each._topology or {}) for each in executors]
        active = [sum(op.num_active_tasks() for op in topology) for topology in topologies]
        running.append(sum(active))
        together.append(sum(map(bool, active)))

    monkeypatch.setattr(ray_executor.PacedSteps, "on_execution_step", count)
    whole = all_steps(dataset, stream(dataset, window_chunks=24, lead_chunks=20))
    assert len(whole) == 3 * dataset.plan.steps_per_epoch
    assert max(together) > 1  # windows did overlap
    assert 2 <= max(running) <= 3  # two tasks, and one that Ray Data starts to stay alive
