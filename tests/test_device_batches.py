"""Batches are made one step ahead, in a thread, in the stream's order."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from effnet_ray.data.stream import Images, Lane, Stream
from effnet_ray.errors import StorageError
from effnet_ray.train.batch import Batch
from effnet_ray.train.device_batches import DeviceBatches, made_ahead

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")


def images(number: int, *parts: int, bad: bool = False) -> Images:
    """Images of one value, in parts of these sizes; the first one may be bad."""
    arrays = [np.full((rows, 4, 4, 3), number, np.uint8) for rows in parts]
    weight = np.ones(sum(parts), np.float32)
    weight[: int(bad)] = 0
    ids = np.arange(sum(parts)) + 100 * number
    lanes = tuple(Lane(index, rows) for index, rows in enumerate(parts))
    return Images(arrays, np.zeros(sum(parts), np.int64), weight, ids, {}, lanes)


def batches(
    steps: Callable[[], Iterator[Images]], log: Callable[[Images, int], None]
) -> DeviceBatches:
    stream = SimpleNamespace(train=lambda step: steps(), eval=steps)
    return DeviceBatches(
        cast(Stream, stream), CPU, on_train_images=log, on_bad_eval_images=lambda _: None
    )


def test_a_batch_has_the_lanes_and_the_parts_of_its_step() -> None:
    (batch,) = batches(lambda: iter([images(7, 2, 3, bad=True)]), lambda *_: None).train(0)
    assert batch.image.shape == (5, 3, 4, 4) and bool((batch.image == 7).all())
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.lanes == (Lane(0, 2), Lane(1, 3)) and batch.readable == 4


def test_a_step_of_one_part_is_not_copied() -> None:
    step = images(7, 5)
    (batch,) = batches(lambda: iter([step]), lambda *_: None).train(0)
    assert batch.image.data_ptr() == step.image[0].ctypes.data


def test_an_empty_step_is_a_batch_without_images() -> None:
    (batch,) = batches(lambda: iter([images(0)]), lambda *_: None).train(0)
    assert len(batch.label) == batch.readable == 0


def test_the_next_step_is_logged_and_made_while_this_one_is_used() -> None:
    logged: list[tuple[int, int, bool]] = []
    third = threading.Event()

    def log(step: Images, number: int) -> None:
        in_thread = threading.current_thread() is not threading.main_thread()
        logged.append((int(step.id[0]) // 100, number, in_thread))
        if number == 7:
            third.set()

    steps = batches(lambda: (images(n, 2) for n in range(4)), log).train(5)
    first = next(steps)
    assert int(first.image[0, 0, 0, 0]) == 0 and (0, 5, True) in logged
    assert int(next(steps).image[0, 0, 0, 0]) == 1
    assert third.wait(10)  # the third was made without being asked for
    assert [int(batch.image[0, 0, 0, 0]) for batch in steps] == [2, 3]
    assert logged == [(n, n + 5, True) for n in range(4)]


def test_an_error_of_the_stream_comes_after_the_steps_before_it() -> None:
    def broken() -> Iterator[Images]:
        yield images(0, 2)
        raise StorageError("the bucket is gone")

    steps = batches(broken, lambda *_: None).train(0)
    assert isinstance(next(steps), Batch)
    with pytest.raises(StorageError, match="the bucket is gone"):
        next(steps)


def test_leaving_a_stream_waits_for_nothing() -> None:
    release, started = threading.Event(), threading.Event()

    def slow() -> Iterator[Any]:
        yield 1
        started.set()
        release.wait(30)
        yield 2

    items = made_ahead(slow(), CPU)
    assert next(items) == 1 and started.wait(10)
    items.close()  # type: ignore[attr-defined]  # a generator
    release.set()
