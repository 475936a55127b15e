"""One live line, one line per epoch, a table at the end.

In a job's log, where there is no terminal, the live line becomes plain lines now and then.
"""

import re
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import (
    ComputingFeatures,
    EpochDone,
    Event,
    ImagesQuarantined,
    MicroBatchSplit,
    Preempted,
    RunFailed,
    RunStarted,
    StepDone,
    WorkerDied,
    WorkersStarted,
)

PLAIN_EVERY_S = 30
"""Seconds between progress lines in a log."""
NAMED_AT_ONCE = 5
"""Quarantined images named on the console; the run's quarantine/ folder names all."""


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""All but line ends and tabs; and halves of pairs, which no terminal can be sent."""


class Terminal:
    """Speaks to whoever watches. Use as a context; it may be silent when nothing happens."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[figures]}  ETA"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._doing = ""
        self._last_plain = self._began = time.monotonic()
        self._begin = WorkersStarted(workers=0, step=0, steps=0, device="")
        self._given_up = False
        self.trained = False
        """Whether any worker has started since."""

    def __enter__(self) -> "Terminal":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:  # stopping prints an empty line
            self._live.stop()

    def say(self, sentence: str) -> None:
        """One plain sentence."""
        self.console.print(harmless(sentence), markup=False)

    def packed(self, done: int, total: int) -> None:
        """Progress of packing, images."""
        self.counted("packing", "packed", done, total)

    def scored(self, done: int, total: int) -> None:
        """Progress of scoring the test split, images."""
        self.counted("scoring the test split", "scored the test split:", done, total)

    def counted(self, doing: str, did: str, done: int, total: int) -> None:
        """Progress of what is done image by image."""
        if self._doing != doing:
            self._begun(doing, total)
        pace = done / max(1e-3, time.monotonic() - self._began)
        figures = f"{pace:,.0f} images/s"
        assert self._task is not None
        self._live.update(self._task, completed=done, total=total, figures=figures)
        now = time.monotonic()
        if done == total:
            self._doing = ""  # the next of its kind begins anew
            self.say(f"{did} {total:,} images, {figures}")
        elif not self.console.is_terminal and now - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = now
            self.say(f"{did} {done:,} of {total:,} images, {figures}")

    def _begun(self, doing: str, total: int, done: int = 0) -> None:
        """A live line for something else."""
        if self._task is not None:
            self._live.remove_task(self._task)
        self._doing, self._began = doing, time.monotonic()
        self._task = self._live.add_task(doing, total=total, completed=done, figures="")

    def hear(self, event: Event) -> None:
        """An event of a run."""
        match event:
            case RunStarted():
                pass  # trackers hear it
            case ComputingFeatures():
                self._extracting(event)
            case WorkersStarted():
                self._started(event)
            case StepDone():
                self._stepped(event)
            case MicroBatchSplit():
                parts = f"each micro-batch in {event.pieces} parts"
                self.say(f"{parts}: it does not fit into memory at once")
            case EpochDone():
                self._epoch(event)
            case ImagesQuarantined():
                named = list(event.images.items())
                for image, why in named[:NAMED_AT_ONCE]:
                    self.say(f"quarantined image {image}: {why}")
                if len(named) > NAMED_AT_ONCE:
                    self.say(f"… and {len(named) - NAMED_AT_ONCE} more, in the run's quarantine/")
            case WorkerDied():
                if not self._given_up:  # else the driver says it
                    self.say(f"lost workers: {event.why}")
            case Preempted():
                self.say(f"a machine is being taken away: saved at step {event.step}, going on")
            case WaitingForWorkers():
                since = timedelta(seconds=round(event.seconds))
                self.say(f"waiting since {since} for {event.reason}")
            case RunFailed():
                self._given_up = True  # the driver raises it

    def _extracting(self, event: ComputingFeatures) -> None:
        if self._task is None:
            self.say(f"computing the features of {event.images:,} images, once")
            self._begun("features", event.images)
        assert self._task is not None
        pace = f"{event.done / max(1e-3, time.monotonic() - self._began):,.1f} images/s"
        self._live.update(self._task, completed=event.done, figures=pace)
        now = time.monotonic()
        if event.done == event.images:
            self.say(f"features of {event.images:,} images kept, {pace}")
        elif not self.console.is_terminal and now - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = now
            self.say(f"features {event.done:,}/{event.images:,}  {pace}")

    def _started(self, event: WorkersStarted) -> None:
        self.trained = True
        self._begin = event
        begin = f"resuming at step {event.step} of" if event.step else "training for"
        workers = "1 worker" if event.workers == 1 else f"{event.workers} workers"
        phases = f": {event.phases}" if event.phases else ""
        self.say(f"{begin} {event.steps} steps on {workers} ({event.device}){phases}")
        self._begun("training", event.steps, event.step)

    def _stepped(self, event: StepDone) -> None:
        figures = f"{event.images_per_s:,.1f} images/s  loss {event.loss:.3f}"
        if self._task is not None:
            self._live.update(self._task, completed=event.step, figures=figures)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = now
            self.say(f"step {event.step}/{self._begin.steps}  {figures}  ETA {self._eta(event)}")

    def _eta(self, event: StepDone) -> str:
        """Time left at the pace since the workers started, evaluations left out."""
        pace = (time.monotonic() - self._began) / max(1, event.step - self._begin.step)
        return str(timedelta(seconds=round(pace * (self._begin.steps - event.step))))

    def _epoch(self, event: EpochDone) -> None:
        report = event.report
        self._last_plain = time.monotonic()
        if self._task is not None:
            self._live.update(self._task, completed=report.step)
        self.say(
            f"epoch {report.epoch + 1:>3}  train loss {report.train_loss:.4f}  "
            f"{_evaluated(report)}"
            f"{event.images_per_s:,.1f} images/s  {event.seconds:.1f} s  "
            f"(waited {event.data_wait_s:.1f} s for data)"
        )
        if report.skipped:
            self.say(f"skipped {report.skipped} steps: loss or gradient not finite")

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Names and values, one a line and never folded: they are there to be copied."""
        self.say(f"\n{title}")
        width = max(map(len, rows))
        for name, value in rows.items():
            self.say(f"  {name:<{width}}  {value}")


def harmless(text: str) -> str:
    """The text without what would move a terminal's cursor: names of files are anybody's."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _evaluated(report: EpochReport) -> str:
    """What an epoch's evaluation found; nothing where it had none."""
    if report.eval_loss is None or report.score is None:
        return ""
    averaged = "(averaged)  " if report.averaged else ""
    score = f"{'top-1' if report.eval_map is None else 'mAP'} {report.score:.2%}"
    return f"eval loss {report.eval_loss:.4f}  eval {score}  {averaged}"
