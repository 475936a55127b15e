"""The stream through Ray Data is the plan: in order, over windows, from any step on."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from laws import RECIPE

from effnet_ray.data import ingest, manifest as manifests
from effnet_ray.data.ingest import Dataset, Images, Stream

pytestmark = pytest.mark.ray


@pytest.fixture
def dataset(digits: str) -> Dataset:
    recipe = replace(RECIPE, epochs=3, limit=300, batch_size=16, micro_batch=4)
    recipe = recipe.settled(recipe.row.input_spec(), workers=1, on_gpu=False)
    spec = replace(recipe.row.input_spec(), resolution=32)
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
        evaluated = [image for batch in source.eval() for image in batch.id]
        assert len(evaluated) == len(set(evaluated)) == dataset.eval_plan.images
    return steps


def test_small_windows_change_nothing_and_a_resumed_stream_is_the_tail(
    cluster: None, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = all_steps(dataset, stream(dataset))
    monkeypatch.setattr(ingest, "WINDOW_CHUNKS", 7)
    monkeypatch.setattr(ingest, "LEAD_CHUNKS", 3)
    resumed = all_steps(dataset, stream(dataset, first_step=25), first_step=25)
    assert len(whole) == 3 * dataset.plan.steps_per_epoch == 57
    assert len(resumed) == len(whole) - 25
    for before, after in zip(whole[25:], resumed, strict=True):
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one.id, other.id)
            assert np.array_equal(one.image, other.image)  # the same views, too


def test_the_stream_is_the_plan(cluster: None, dataset: Dataset, digits: str) -> None:
    plan, manifest = dataset.plan, dataset.manifest
    ids = pq.read_table(f"{digits}/{manifest.splits['train'][0].path}")["id"].to_numpy()
    ends = np.cumsum(plan.row_groups)
    source = stream(dataset, rank=1, workers=3)
    seen = [np.concatenate([lane.id for lane in step]) for step in source.train(0)]
    chunks = [plan.chunk(0, lane=1, index=i) for i in range(plan.chunks_per_epoch)]
    planned = [
        ids[ends[group] - plan.row_groups[group] + row]
        for chunk in chunks
        for group, row in chunk.tolist()
    ]
    assert np.concatenate(seen).tolist() == planned
