"""Dropout and drop path whose masks a training step draws for each lane and sets beforehand."""

import torch
from torch import Tensor, nn


class Drop(nn.Module):
    """Dropout or drop path: in training, zeroes values at random and scales up the others.

    A step draws the masks of whole lanes (micro-batches), so they do not depend on how many images
    are computed at once. Without a mask, a forward pass draws its own.
    """

    mask: Tensor | None = None
    """[B, 1, …] or [B, F]: factor on the values of the next forward pass."""

    def __init__(self, rate: float, *, per_image: bool) -> None:
        """`rate`: 0 to 1. `per_image`: drop whole images (drop path), not single values."""
        super().__init__()
        self.rate, self.per_image = rate, per_image

    @property
    def is_active(self) -> bool:
        """Whether it drops anything."""
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        """Apply the mask to [B, …]."""
        if not self.is_active:
            return x
        mask = self.mask
        if mask is None:
            mask = self.draw(len(x), *(() if self.per_image else x.shape[1:]), device=x.device)
            mask = mask.view(-1, *[1] * (x.ndim - 1)) if self.per_image else mask
        return x * mask.to(x.dtype)

    def draw(self, *shape: int, device: torch.device) -> Tensor:
        """A mask: 0 with a probability of `rate`, else 1 / (1 - rate)."""
        mask = torch.empty(shape, device=device).bernoulli_(1 - self.rate)
        return mask.div_(1 - self.rate) if self.rate < 1 else mask


def replace_drop_paths(network: nn.Module) -> None:
    """Replace timm's drop paths by `Drop` modules of the same names.

    Those of blocks without a skip connection are never called, and stay.
    """
    from timm.layers import DropPath  # as in `network.build`

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath) and module.has_skip:
                setattr(module, name, Drop(child.drop_prob, per_image=True))
