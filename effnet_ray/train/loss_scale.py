"""The loss scale of float16 training, with the rule of torch.amp.GradScaler."""

from dataclasses import dataclass
from typing import Self

INITIAL, MINIMUM = 65536.0, 1.0
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000
"""Finite steps in a row before the scale grows. All are GradScaler's defaults but MINIMUM, which
GradScaler does not have."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """Factor on the loss that keeps small gradients from vanishing in float16; a power of two.

    Both fields change only with what all workers agree on, so they are equal everywhere. Their
    names are keys of checkpoint.json. GradScaler keeps its state per optimizer instead.
    """

    factor: float = INITIAL
    good: int = 0
    """Finite steps since the factor last changed."""

    @property
    def can_decrease(self) -> bool:
        """Whether a step that is not finite may be due to the scale."""
        return self.factor > MINIMUM

    def after_overflow(self) -> Self:
        """The scale after a step that was not finite."""
        return type(self)(max(MINIMUM, self.factor * BACKOFF))

    def after_finite(self) -> Self:
        """The scale after a finite step; larger after GROWTH_INTERVAL of them."""
        if self.good + 1 < GROWTH_INTERVAL:
            return type(self)(self.factor, self.good + 1)
        return type(self)(self.factor * GROWTH)
