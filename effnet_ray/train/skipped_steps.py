"""Ends a run after too many steps that were not finite, without waiting for a GPU."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from effnet_ray.errors import NonFiniteError
from effnet_ray.recipe import Recipe


@dataclass(frozen=True, slots=True)
class _Reading:
    """The number of skipped steps after a step, on its way from the device."""

    step: int
    rate: float
    skipped: Tensor
    """[] on the CPU; valid after `arrived`."""
    arrived: torch.cuda.Event | None

    def value(self) -> int:
        if self.arrived:
            self.arrived.synchronize()
        return int(self.skipped)


class SkippedSteps:
    """Reads a step's outcome while the next one is computed."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._readings = deque[_Reading]()

    def add(self, step: int, rate: float, skipped: Tensor) -> None:
        """Ask the device for `TrainState.skipped` after a step at a learning rate."""
        arrived = None
        if skipped.is_cuda:
            pinned = torch.empty_like(skipped, device="cpu", pin_memory=True)
            skipped = pinned.copy_(skipped, non_blocking=True)
            arrived = torch.cuda.current_stream().record_event()
        self._readings.append(_Reading(step, rate, skipped, arrived))

    def check(self, *, newest: bool = False) -> None:
        """Raise NonFiniteError if more than `max_skips` steps in a row were skipped.

        The newest step is only checked if `newest`: to read it, Python waits for the device.
        """
        while len(self._readings) > (not newest):
            self._check(self._readings.popleft())

    def _check(self, reading: _Reading) -> None:
        recipe, skipped = self._recipe, reading.value()
        if skipped <= recipe.max_skips:
            return
        earlier = skipped - 1
        repeated = f", after {earlier} skipped step{'s' if earlier > 1 else ''}" if earlier else ""
        raise NonFiniteError(
            f"the loss or its gradient is not finite at step {reading.step}{repeated} "
            f"({recipe.opt}, learning rate {reading.rate:.2g}, {recipe.precision}): "
            "lower --lr, or use --audit and look at the images of that step"
        )
