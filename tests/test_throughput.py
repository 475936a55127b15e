"""The training rate: what its clock excludes, and what a resumed epoch counts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import EpochDone, Event, WorkersStarted
from effnet_ray.train.run_monitor import RunMonitor
from effnet_ray.train.throughput import Throughput

REPORT = EpochReport(
    epoch=0,
    step=10,
    train_loss=1.0,
    train_top1=0.5,
    train_images=100,
    eval_loss=1.0,
    eval_top1=0.5,
    eval_top5=1.0,
    eval_images=10,
    quarantined=0,
)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds since its start."""
        return self.now


def steps(throughput: Throughput, clock: Clock, *images: int) -> None:
    """Steps of one second each, after which the epoch has so many images."""
    for count in images:
        throughput.batch_arrived()
        clock.now += 1
        throughput.step_done(count)


def test_the_wait_for_the_first_batch_after_a_start_is_not_counted() -> None:
    clock = Clock()
    throughput = Throughput(clock=clock)
    clock.now = 60.0
    steps(throughput, clock, 8, 16)
    assert (throughput.images, throughput.seconds, throughput.images_per_s) == (16, 2.0, 8.0)


def test_a_resumed_epoch_counts_the_images_since_the_resume() -> None:
    clock = Clock()
    throughput = Throughput(images_before=80, clock=clock)
    clock.now = 30.0
    steps(throughput, clock, 90, 100)
    assert (throughput.images, throughput.seconds, throughput.images_per_s) == (20, 2.0, 10.0)


def test_later_epochs_count_from_the_end_of_the_one_before() -> None:
    clock = Clock()
    throughput = Throughput(images_before=80, clock=clock)
    steps(throughput, clock, 100)
    clock.now += 5  # evaluation
    throughput.epoch_done()
    assert throughput.images_per_s == 0
    clock.now += 1  # waits for its first batch
    steps(throughput, clock, 8)
    assert (throughput.images, throughput.seconds, throughput.images_per_s) == (8, 2.0, 4.0)


def test_without_a_step_the_rate_is_zero() -> None:
    throughput = Throughput(clock=Clock())
    assert throughput.images_per_s == throughput.seconds == 0


@pytest.fixture
def rate() -> Callable[..., float]:
    """The rate of a run with these events."""

    def of(*events: Event) -> float:
        monitor = RunMonitor(cast(Any, None))
        for event in events:
            monitor.on_event(event)
        return monitor.train_images_per_s

    return of


def test_a_runs_rate_weights_a_resumed_epoch_by_its_own_images(
    rate: Callable[..., float],
) -> None:
    part = EpochDone(REPORT, seconds=3.0, train_images=20, train_s=2.0, data_wait_s=0.0)
    whole = replace(part, train_images=100, train_s=4.0)
    assert part.images_per_s == 10 and whole.images_per_s == 25
    started = WorkersStarted(workers=1, step=8, steps=20, device="cpu")
    assert rate(started, part, whole) == 120 / 6
    assert rate(started, whole, started, part) == 10  # of the last group alone
    assert rate() == 0
