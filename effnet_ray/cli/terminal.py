"""Prints to the terminal: a progress bar, a line per epoch, a summary at the end.

Without a terminal, as in a job's log, progress is a plain line every now and then.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from effnet_ray.train.metric_definitions import EVAL_LOSS

if TYPE_CHECKING:
    from effnet_ray.train.epoch_report import EpochReport
    from effnet_ray.train.events import (
        ComputingFeatures,
        EpochDone,
        Event,
        HeadSolved,
        ImagesQuarantined,
        RunStarted,
        StepDone,
        WorkersStarted,
    )

PLAIN_EVERY_S = 30
"""Seconds between progress lines in a log."""
ETA_AFTER_S = 1
"""Seconds of steady progress before a remaining time is estimated."""
MAX_NAMED_IMAGES = 5
"""Quarantined images named on the terminal; the run's quarantine/ folder lists all."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except newline and tab, and surrogates, which cannot be encoded."""


class Terminal:
    """Prints for people, by default to stderr. A context manager: it shows a progress bar."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[text]}"),
            console=self.console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._activity = ""
        self._started = self._last_plain = self._clock()
        self._eta = Eta(0, clock)
        self._failed = False
        self.training_started = False
        """Whether any worker has started training."""

    def __enter__(self) -> "Terminal":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:  # stop() prints an empty line
            self._bar.stop()

    def print(self, text: str) -> None:
        """Print a line of plain text."""
        self.console.print(strip_control(text), markup=False)

    def print_summary(self, title: str, rows: Mapping[str, str]) -> None:
        """Print names and values, one per line and never wrapped, so that they can be copied."""
        self.print(f"\n{title}")
        width = max(map(len, rows))
        for name, value in rows.items():
            self.print(f"  {name:<{width}}  {value}")

    def packing_progress(self, done: int, total: int) -> None:
        """Show the progress of packing, in images."""
        self._show_images("packing", "packed", done, total)

    def test_progress(self, done: int, total: int) -> None:
        """Show the progress of scoring the test split, in images."""
        self._show_images("scoring the test split", "scored the test split:", done, total)

    def image_progress(self, activity: str, past_tense: str) -> Callable[[int, int], None]:
        """A callback of (images done, all images) that shows the progress of an activity."""
        return lambda done, total: self._show_images(activity, past_tense, done, total)

    def _show_images(self, activity: str, past_tense: str, done: int, total: int) -> None:
        if self._activity != activity:
            self._start_bar(activity, total)
        rate = f"{done / max(1e-3, self._clock() - self._started):,.0f} images/s"
        eta = self._eta.update(done)
        self._update_bar(done, f"images  {rate}  ETA {eta}")
        if done == total:
            self._activity = ""  # the same activity may start again
            self.print(f"{past_tense} {total:,} images, {rate}")
        elif self._plain_line_due():
            self.print(f"{past_tense} {done:,} of {total:,} images, {rate}, ETA {eta}")

    def _start_bar(self, activity: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._activity, self._started, self._eta = activity, self._clock(), Eta(total, self._clock)
        self._task = self._bar.add_task(activity, total=total, completed=done, text="")

    def _update_bar(self, done: int, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, text=text)

    def _plain_line_due(self) -> bool:
        """Whether it is time for a progress line in a log."""
        now = self._clock()
        due = not self.console.is_terminal and now - self._last_plain >= PLAIN_EVERY_S
        if due:
            self._last_plain = now
        return due

    def on_event(self, event: "Event") -> None:
        """Show an event of a run."""
        from effnet_ray.runtime.events import WaitingForWorkers
        from effnet_ray.train import events

        match event:
            case events.RunStarted():
                self._show_run(event)
            case events.ComputingFeatures():
                self._show_features(event)
            case events.WorkersStarted():
                self._show_start(event)
            case events.CheckpointSkipped():
                self.print(f"skipped a checkpoint: {event.reason}")
            case events.HeadSolved():
                self._show_head(event)
            case events.StepDone():
                self._show_step(event)
            case events.MicroBatchSplit():
                self.print(
                    f"out of memory: each micro-batch is now computed in {event.splits} parts"
                )
            case events.EpochDone():
                self._show_epoch(event)
            case events.ImagesQuarantined():
                self._show_quarantined(event)
            case events.WorkerDied():
                if not self._failed:  # else the job ends with the error
                    self.print(f"workers failed: {event.reason}")
            case events.Preempted():
                self.print(
                    f"a node is being preempted: saved step {event.step}, training continues"
                )
            case WaitingForWorkers():
                duration = timedelta(seconds=round(event.seconds))
                self.print(f"waiting for workers for {duration}: {event.reason}")
            case events.RunFailed():
                self._failed = True  # the job ends with the error

    def _show_features(self, event: "ComputingFeatures") -> None:
        what = "teacher's logits" if event.of_teacher else "features"
        activity = f"computing {what}"
        if self._activity != activity and event.done < event.images:
            whose = "the" if event.of_teacher else "the backbone's"
            self.print(f"computing and caching {whose} {what} of {event.images:,} images")
        self._show_images(activity, f"computed the {what} of", event.done, event.images)

    def _show_run(self, event: "RunStarted") -> None:
        run, recipe = event.run, event.run.recipe
        weights = "random weights" if run.weights == "none" else run.weights
        self.print(
            f"run {run.name}: {recipe.variant} from {weights}, {recipe.image_size} px, "
            f"batches of {recipe.batch_size}, lr {recipe.lr:.2g}"
            + (f", teacher {run.teacher.uri}" if run.teacher else "")
            + (", compiled" if recipe.compile else "")
        )

    def _show_start(self, event: "WorkersStarted") -> None:
        self.training_started = True
        start = f"resuming at step {event.step} of" if event.step else "training for"
        workers = "1 worker" if event.workers == 1 else f"{event.workers} workers"
        phases = f": {event.phases}" if event.phases else ""
        self.print(f"{start} {event.steps} steps on {workers} ({event.device}){phases}")
        self._start_bar("training", event.steps, event.step)

    def _show_head(self, event: "HeadSolved") -> None:
        ended = "solved" if event.converged else "not solved completely"
        self.print(
            f"head {ended} in {event.seconds:.1f} s: L2 penalty {event.penalty:g}, "
            f"{event.passes} passes over the features"
        )

    def _show_step(self, event: "StepDone") -> None:
        eta = self._eta.update(event.step)
        text = f"{event.images_per_s:,.1f} images/s  loss {event.loss:.3f}  ETA {eta}"
        self._update_bar(event.step, f"steps  {text}")
        if self._plain_line_due():
            self.print(f"step {event.step}/{self._eta.total}  {text}")

    def _show_epoch(self, event: "EpochDone") -> None:
        report = event.report
        self._last_plain = self._clock()
        if self._task is not None:
            self._bar.update(self._task, completed=report.step)
        self.print(
            f"epoch {report.epoch + 1:>3}  train loss {report.train_loss:.4f}  "
            f"{_eval_text(report)}"
            f"{event.images_per_s:>8,.1f} images/s  {event.seconds:>6.1f} s  "
            f"(waited {event.data_wait_s:.1f} s for data)"
        )
        if report.skipped:
            self.print(f"skipped {report.skipped} steps: loss or gradient was NaN or infinite")

    def _show_quarantined(self, event: "ImagesQuarantined") -> None:
        images = list(event.images.items())
        for image, reason in images[:MAX_NAMED_IMAGES]:
            self.print(f"quarantined image {image}: {reason}")
        if len(images) > MAX_NAMED_IMAGES:
            self.print(f"… and {len(images) - MAX_NAMED_IMAGES} more: see the run's quarantine/")


class Eta:
    """Estimates the remaining time from the rate since the first update.

    What happens before it, like starting workers, compiling, and the first batch, does not count.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._clock = total, clock
        self._first: tuple[float, int] | None = None

    def update(self, done: int) -> str:
        """The time until `total`, as H:MM:SS; "–" until there is enough progress to tell."""
        now = self._clock()
        if self._first is None:
            self._first = (now, done)
        start, first = self._first
        if done <= first or now - start < ETA_AFTER_S:
            return "–"
        seconds = (now - start) / (done - first) * (self.total - done)
        return str(timedelta(seconds=round(seconds)))


def strip_control(text: str) -> str:
    """The text without control characters: file names may contain any."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _eval_text(report: "EpochReport") -> str:
    """The eval metrics of an epoch; empty if it was not evaluated."""
    if report.eval_loss is None or report.score is None:
        return ""
    averaged = "(EMA)  " if report.averaged else ""
    metric = report.ranking_metric
    score = f"{metric.label} {metric.format(report.score):>6}"
    return f"{EVAL_LOSS.describe(report.eval_loss)}  {score}  {averaged}"
