"""The loss scale of float16 training, with the rule of torch.amp.GradScaler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

INITIAL, MINIMUM = 65536.0, 1.0
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000
"""Finite steps in a row before the scale grows. All are GradScaler's defaults but MINIMUM, which
GradScaler does not have."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """Factor on the loss that keeps small gradients from vanishing in float16; a power of two.

    Both numbers stay on the device, so no step waits to read them. They change only with what all
    workers agree on, so they are equal everywhere. GradScaler keeps its state per optimizer
    instead.
    """

    factor: Tensor
    """[] float32."""
    good: Tensor
    """[] int32: finite steps since the factor last changed."""

    @classmethod
    def of(cls, factor: float = INITIAL, good: int = 0) -> Self:
        """The scale with these numbers, on the CPU."""
        return cls(torch.tensor(factor), torch.tensor(good, dtype=torch.int32))

    def to(self, device: torch.device) -> Self:
        """The scale on a device."""
        return type(self)(self.factor.to(device), self.good.to(device))

    @property
    def can_decrease(self) -> Tensor:
        """[] bool: whether a step that is not finite may be due to the scale."""
        return self.factor > MINIMUM

    def after(self, finite: Tensor) -> Self:
        """The scale after a step: smaller unless it was finite ([] bool), else larger in time."""
        good = self.good + 1
        grows = finite & (good >= GROWTH_INTERVAL)
        higher = torch.where(grows, self.factor * GROWTH, self.factor)
        lower = (self.factor * BACKOFF).clamp(min=MINIMUM)
        counts = finite & ~grows
        return type(self)(torch.where(finite, higher, lower), good * counts)

    def to_json(self) -> dict[str, Any]:
        """Its form in checkpoint.json."""
        return {"factor": float(self.factor), "good": int(self.good)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The opposite of `to_json`. Raises LookupError or TypeError if malformed."""
        return cls.of(float(record["factor"]), int(record["good"]))
