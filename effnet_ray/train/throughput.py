"""Measures images per second of training, starting again after a resume. No torch, no Ray.

`run_monitor` divides the whole run's rate from the epochs' images and seconds.
"""

import time
from collections.abc import Callable


class Throughput:
    """Train images and the seconds they took, in the current epoch and by this worker group.

    After a start or a resume the clock starts when the first batch has arrived: starting Ray Data,
    loading weights and warming up are not training. In later epochs it starts when the previous
    epoch, with its evaluation, has ended.
    """

    def __init__(
        self, images_before: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`images_before`: images of the current epoch that an earlier worker group used."""
        self._images_before, self._clock = images_before, clock
        self._start: float | None = None
        self._last_step = 0.0
        self.images = 0
        """Images of the epoch's steps so far, of all workers."""

    def batch_arrived(self) -> None:
        """A step's batch is loaded: starts the clock of the group's first epoch."""
        if self._start is None:
            self._start = self._last_step = self._clock()

    def step_done(self, images: int) -> None:
        """A step is done; `images` counts the whole epoch up to it."""
        self._last_step = self._clock()
        self.images = images - self._images_before

    def epoch_done(self) -> None:
        """The next epoch begins."""
        self._start = self._last_step = self._clock()
        self._images_before = self.images = 0

    @property
    def seconds(self) -> float:
        """Time of the epoch's steps so far."""
        return 0.0 if self._start is None else self._last_step - self._start

    @property
    def images_per_s(self) -> float:
        """Images per second in the epoch so far."""
        return self.images / max(1e-9, self.seconds)
