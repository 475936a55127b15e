"""The stream without Ray: every planned image once and in order, for any number of workers."""

import itertools
import json
import queue
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from support.laws import RECIPE

from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import BadImage, Block, ChunkTask, Dataset
from effnet_ray.data.ray_executor import Window, run_windows
from effnet_ray.data.stream import Images, Stream
from effnet_ray.data.thread_executor import ThreadExecutor
from effnet_ray.phases import evaluates

EPOCHS = 2


@pytest.fixture
def dataset(digits: str) -> Dataset:
    """300 training images; 19 steps of 16 an epoch, the last short; 4 lanes."""
    recipe = replace(RECIPE, epochs=EPOCHS, limit=300, batch_size=16, micro_batch=4)
    spec = replace(recipe.variant_spec.input_spec(), resolution=32)
    recipe = recipe.resolved(spec, workers=1, on_gpu=False)
    return Dataset(manifests.load(digits).limited(300), digits, recipe, spec)


def in_windows(dataset: Dataset, tasks: Iterator[ChunkTask]) -> Iterator[Block]:
    """Windows of five chunks, each loaded by threads."""
    windows = iter(lambda: list(itertools.islice(tasks, 5)), [])
    return run_windows(windows, lambda window: ThreadExecutor(2)(dataset, window), 2)


def stream(
    dataset: Dataset, rank: int = 0, workers: int = 1, first_step: int = 0, threads: int = 3
) -> Stream:
    execute = ThreadExecutor(threads) if threads else in_windows
    return Stream(dataset, rank=rank, workers=workers, first_step=first_step, execute=execute)


def read(
    dataset: Dataset, source: Stream, first_step: int = 0
) -> tuple[list[Images], list[list[Images]]]:
    """All steps, and the batches of each evaluation."""
    per_epoch = dataset.plan.steps_per_epoch
    steps, evaluations = list[Images](), list[list[Images]]()
    for epoch in range(first_step // per_epoch, dataset.recipe.epochs):
        steps += source.train(max(0, first_step - epoch * per_epoch))
        if evaluates(dataset.recipe, epoch):
            evaluations.append(list(source.eval()))
    return steps, evaluations


def ids(dataset: Dataset, split: str) -> npt.NDArray[np.int64]:
    """Ids of a split's images, by their place in it."""
    shards = dataset.manifest.splits[split]
    tables = [
        pq.read_table(f"{dataset.data}/{shard.path}").slice(0, shard.rows) for shard in shards
    ]
    return np.concatenate([table["id"].to_numpy() for table in tables])


def planned_step(dataset: Dataset, step: int, lane: int) -> list[int]:
    """Ids that a lane gives to a step of the run."""
    plan = dataset.plan
    epoch, step = divmod(step, plan.steps_per_epoch)
    chunk, skip = divmod(step, plan.chunk_steps)
    rows = plan.chunk(epoch, lane, chunk, skip_steps=skip)[: plan.lane_rows(step, lane)]
    index = plan.split
    places = index.ends[rows[:, 0]] - index.sizes[rows[:, 0]] + rows[:, 1]
    return ids(dataset, "train")[places].tolist()


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_give_every_planned_image_once_and_in_order(
    dataset: Dataset, workers: int, threads: int
) -> None:
    per_epoch = dataset.plan.steps_per_epoch
    used, evaluated = [list[int]() for _ in range(EPOCHS)], [list[int]() for _ in range(EPOCHS)]
    for rank in range(workers):
        lanes = dataset.plan.workers_lanes(rank, workers)
        steps, evaluations = read(dataset, stream(dataset, rank, workers, threads=threads))
        assert len(steps) == EPOCHS * per_epoch and len(evaluations) == EPOCHS
        for step, images in enumerate(steps):
            planned = [planned_step(dataset, step, lane) for lane in lanes]
            assert [(lane.index, lane.rows) for lane in images.lanes] == [
                (lane, len(rows)) for lane, rows in zip(lanes, planned, strict=True)
            ]
            assert images.id.tolist() == list(itertools.chain(*planned))
            used[step // per_epoch] += images.id.tolist()
        for epoch, batches in enumerate(evaluations):
            evaluated[epoch] += [image for batch in batches for image in batch.id.tolist()]
    assert all(sorted(epoch) == sorted(ids(dataset, "train").tolist()) for epoch in used)
    assert all(sorted(epoch) == sorted(ids(dataset, "eval").tolist()) for epoch in evaluated)


@pytest.mark.quick
@pytest.mark.parametrize("first_step", [1, 18, 19, 25])
def test_a_resumed_stream_is_the_tail_of_the_whole_one(dataset: Dataset, first_step: int) -> None:
    """Whatever loads its chunks, and the pixels are the same, too."""
    whole, _ = read(dataset, stream(dataset))
    resumed, _ = read(dataset, stream(dataset, first_step=first_step, threads=0), first_step)
    assert len(resumed) == len(whole) - first_step
    for before, after in zip(whole[first_step:], resumed, strict=True):
        assert np.array_equal(before.id, after.id) and np.array_equal(before.label, after.label)
        assert np.array_equal(*(np.concatenate(images.image) for images in (before, after)))


@pytest.mark.quick
def test_a_quarantined_image_has_weight_0_and_is_named(dataset: Dataset) -> None:
    reason = json.dumps(asdict(BadImage("cat/1.jpg", "torn", "ab" * 32)))

    def fifths_are_bad(dataset: Dataset, tasks: Iterator[ChunkTask]) -> Iterator[Block]:
        for block in ThreadExecutor(1)(dataset, tasks):
            bad = ["" if image % 5 else reason for image in block["id"]]
            yield block | {"bad": np.asarray(bad, object)}

    source = Stream(dataset, rank=0, workers=1, first_step=0, execute=fifths_are_bad)
    steps, evaluations = read(dataset, source)
    for images in itertools.chain(steps, *evaluations):
        assert images.weight.tolist() == [float(image % 5 > 0) for image in images.id]
        assert list(images.bad) == [image for image in images.id if image % 5 == 0]


@pytest.mark.parametrize("first_step", [0, 25])
def test_an_evaluation_stands_in_the_stream_only_after_epochs_that_have_one(
    dataset: Dataset, first_step: int
) -> None:
    """The rest stays as it is."""

    def all_tasks(eval_every: int) -> list[ChunkTask]:
        recorded = list[ChunkTask]()

        def record(dataset: Dataset, tasks: Iterator[ChunkTask]) -> Iterator[Block]:
            recorded.extend(tasks)
            return iter(())

        recipe = replace(dataset.recipe, epochs=3, eval_every=eval_every)
        changed = replace(dataset, recipe=recipe)
        Stream(changed, rank=0, workers=1, first_step=first_step, execute=record)
        return recorded

    always, seldom = all_tasks(1), all_tasks(2)
    assert {task.epoch for task in seldom if task.split == "eval"} == {1, 2}
    assert seldom == [task for task in always if task.split == "train" or task.epoch > 0]


@pytest.mark.parametrize("chunks_per_block", [1, 3, 7])
def test_the_next_window_starts_before_the_current_one_ends(chunks_per_block: int) -> None:
    """However many chunks Ray Data puts into a block."""
    started: queue.Queue[int] = queue.Queue()

    def execute(window: Window) -> Iterator[Block]:
        started.put(len(window))
        for start in range(0, len(window), chunks_per_block):
            some = window[start : start + chunks_per_block]
            yield {"label": np.concatenate([np.full(task.rows, task.epoch) for task in some])}

    tasks = [ChunkTask("train", n // 14, 0, n % 14, 0, rows=3 + n % 2) for n in range(3 * 14)]
    windows = [tasks[start : start + 14] for start in (0, 14, 28)]
    blocks = run_windows(iter(windows), execute, lead_chunks=7)
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


def test_an_unused_stream_of_threads_loads_only_what_it_may_hold(dataset: Dataset) -> None:
    requested = list[ChunkTask]()

    def tasks() -> Iterator[ChunkTask]:
        for chunk in range(100):
            requested.append(ChunkTask("eval", 0, 0, chunk % dataset.eval_plan.chunks, 0))
            yield requested[-1]

    blocks = ThreadExecutor(2)(dataset, tasks())
    next(blocks)
    assert len(requested) == 3
    blocks.close()  # type: ignore[attr-defined]  # a generator
