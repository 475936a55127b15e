"""float16's loss scale: by the rule of torch.amp.GradScaler, as two numbers."""

from dataclasses import dataclass
from typing import Self

FIRST, FLOOR = 65536.0, 1.0
GROWTH, BACKOFF = 2.0, 0.5
GROWS_AFTER = 2000
"""Steps in a row that were finite: torch's defaults, as all but the floor, which it has not."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """What the loss is multiplied by, lest small gradients vanish in float16; a power of two.

    GradScaler keeps what it finds of each optimizer; two numbers, moved by what all workers agree
    on, are the same on every worker and fit into a checkpoint's record.
    """

    factor: float = FIRST
    good: int = 0
    """Finite steps since it last moved."""

    @property
    def may_fall(self) -> bool:
        """Whether a step that is not finite may be the scale's fault."""
        return self.factor > FLOOR

    def fallen(self) -> Self:
        """After a step that was not finite."""
        return type(self)(max(FLOOR, self.factor * BACKOFF))

    def risen(self) -> Self:
        """After a finite step: higher where it was the last of enough."""
        if self.good + 1 < GROWS_AFTER:
            return type(self)(self.factor, self.good + 1)
        return type(self)(self.factor * GROWTH)
