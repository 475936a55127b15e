"""What people read in a log without a terminal."""

import io
from dataclasses import replace

import pytest

from effnet_ray.cli import terminal as console
from effnet_ray.cli.terminal import Terminal
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import (
    EpochDone,
    HeadSolved,
    ImagesQuarantined,
    MicroBatchSplit,
    StepDone,
    WorkersStarted,
)

REPORT = EpochReport(
    epoch=1, step=20, train_loss=0.5, train_top1=0.9, train_images=80, eval_loss=0.25,
    eval_top1=0.975, eval_top5=1.0, eval_images=20, quarantined=0,
)  # fmt: skip


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0)
    log = io.StringIO()
    with Terminal(log) as people:
        people.on_event(
            WorkersStarted(workers=2, step=10, steps=30, device="cpu", phases="3 of x")
        )
        people.on_event(HeadSolved(penalty=0.03, passes=95, converged=True, seconds=1.25))
        people.on_event(StepDone(step=12, loss=0.75, images_per_s=150.0))
        people.on_event(EpochDone(REPORT, seconds=4.0, train_images=300, train_s=2.0,
                              data_wait_s=0.1))  # fmt: skip
        unevaluated = replace(REPORT, epoch=2, eval_loss=None, eval_top1=None, eval_top5=None)
        people.on_event(EpochDone(unevaluated, seconds=3.0, train_images=300, train_s=2.0,
                              data_wait_s=0.1))  # fmt: skip
        several = replace(REPORT, epoch=3, eval_map=0.625)
        people.on_event(EpochDone(several, seconds=3.0, train_images=300, train_s=2.0,
                              data_wait_s=0.1))  # fmt: skip
        people.on_event(MicroBatchSplit(2))
        people.on_event(ImagesQuarantined({7: "cat/7.jpg: truncated"}))
        people.print_summary("pets@v1", {"release": "s3://models/pets/v0001", "run": "x" * 200})
    text = log.getvalue()
    assert "resuming at step 10 of 30 steps on 2 workers (cpu): 3 of x" in text
    assert "head solved in 1.2 s: L2 penalty 0.03, 95 passes over the features" in text
    assert "step 12/30  150.0 images/s  loss 0.750  ETA" in text
    assert "epoch   2  train loss 0.5000  eval loss 0.2500  eval top-1 97.50%" in text
    assert "epoch   3  train loss 0.5000     150.0 images/s" in text
    assert "epoch   4  train loss 0.5000  eval loss 0.2500  eval mAP 62.50%" in text
    assert "out of memory: each micro-batch is now computed in 2 parts" in text
    assert "quarantined image 7: cat/7.jpg: truncated" in text
    assert f"  run      {'x' * 200}\n" in text  # never folded: it is there to be copied
    assert "\x1b" not in text


def test_a_file_name_moves_no_cursor() -> None:
    log = io.StringIO()
    with Terminal(log) as people:
        people.print("quarantined \x1b[2J\x9b1m\rcat.jpg, caf\ud8e9.jpg, é stays")
    assert log.getvalue() == "quarantined �[2J�1m�cat.jpg, caf�.jpg, é stays\n"


def test_the_remaining_time_is_estimated_from_the_first_step_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0)
    log = io.StringIO()
    with Terminal(log, clock=lambda: now) as people:
        people.on_event(WorkersStarted(workers=2, step=0, steps=30, device="cpu"))
        for step, now in [(1, 100.0), (2, 100.2), (11, 110.0), (21, 120.0)]:  # noqa: B007
            people.on_event(StepDone(step=step, loss=0.75, images_per_s=150.0))
    etas = [line.rpartition("ETA ")[2] for line in log.getvalue().splitlines() if "ETA" in line]
    assert etas == ["–", "–", "0:00:19", "0:00:09"]  # 100 s of warm-up do not count


def test_a_resumed_run_counts_only_its_own_steps() -> None:
    now = 0.0
    eta = console.Eta(1000, clock=lambda: now)
    assert eta.update(900) == "–"
    now = 50.0
    assert eta.update(950) == "0:00:50"
