"""Dropout and drop path whose masks are drawn once per micro-batch, however it is split."""

from torch import Tensor, nn


class Drop(nn.Module):
    """Dropout or drop path: in training, zeroes values at random and scales up the others.

    A mask is drawn for a whole lane (micro-batch), so it does not depend on how the lane's images
    are split into forward passes. Outside a lane, every forward pass draws its own.
    """

    def __init__(self, rate: float, *, per_image: bool) -> None:
        """`rate`: 0 to 1. `per_image`: drop whole images (drop path), not single values."""
        super().__init__()
        self.rate, self.per_image = rate, per_image
        self._lane_rows = 0
        self._mask: Tensor | None = None  # of the lane's remaining images

    def begin_lane(self, rows: int) -> None:
        """Start a lane of `rows` images; the next forward pass draws its mask."""
        self._lane_rows, self._mask = rows, None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the mask to [B, …], the next images of the lane."""
        if not self.training or not self.rate:
            return x
        if self._mask is None or not len(self._mask):
            self._mask = self._draw(x)
        mask, self._mask = self._mask[: len(x)], self._mask[len(x) :]
        return x * mask

    def _draw(self, x: Tensor) -> Tensor:
        """The mask of a lane, as timm and torch draw it on a CPU: [rows, 1, …] or [rows, …]."""
        shape = (1,) * (x.ndim - 1) if self.per_image else x.shape[1:]
        mask = x.new_empty(max(self._lane_rows, len(x)), *shape).bernoulli_(1 - self.rate)
        return mask.div_(1 - self.rate) if self.rate < 1 else mask


def replace_drop_paths(network: nn.Module) -> None:
    """Replace timm's drop paths by `Drop` modules of the same names."""
    from timm.layers import DropPath  # as in `network.build`

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, Drop(child.drop_prob, per_image=True))
