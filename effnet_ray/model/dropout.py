"""Dropout and drop path, drawn for a whole lane, however it is divided among passes."""

from torch import Tensor, nn


class Drop(nn.Module):
    """Multiplies some by 0 and the others by 1 / (1 - rate), while training.

    What is drawn for a lane does not depend on how its images are divided among forward passes.
    Outside of a lane every pass is one of its own.
    """

    def __init__(self, rate: float, *, whole: bool) -> None:
        """`rate`: 0 to 1. `whole`: all of an image or nothing; else each of its numbers."""
        super().__init__()
        self.rate, self.whole = rate, whole
        self._rows = 0
        self._left: Tensor | None = None

    def begin_lane(self, rows: int) -> None:
        """The next so many images are a lane; what they are multiplied by is drawn at once."""
        self._rows, self._left = rows, None

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] the next images of the lane."""
        if not self.training or not self.rate:
            return x
        if self._left is None or not len(self._left):
            self._left = self._drawn(x)
        mine, self._left = self._left[: len(x)], self._left[len(x) :]
        return x * mine

    def _drawn(self, x: Tensor) -> Tensor:
        """As timm and torch draw it on a CPU: [rows, 1, …], or [rows, …] as x."""
        numbers = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]
        drawn = x.new_empty(max(self._rows, len(x)), *numbers).bernoulli_(1 - self.rate)
        return drawn.div_(1 - self.rate) if self.rate < 1 else drawn


def replace_drop_paths(network: nn.Module) -> None:
    """Put ours where timm's are, under their names."""
    from timm.layers import DropPath  # as in `network.build`

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, Drop(child.drop_prob, whole=True))
