"""BatchNorm whose running statistics do not depend on the number of workers.

Batches are normalised over a lane (micro-batch), whichever worker runs it. The running statistics
are updated once per optimizer step, from all lanes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def batchnorms(network: nn.Module) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
    """All BatchNorm layers, in the order of the forward pass."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return [layer for layer in network.modules() if isinstance(layer, kinds)]


class RunningStatistics:
    """Updates BatchNorm's running statistics once per step, from all lanes of all workers.

    PyTorch updates them in every forward pass, so two lanes on one worker would give other
    statistics than one lane on each of two workers. Here every lane starts from the statistics at
    the start of the step; the step's result is the mean of the lanes' results, weighted by their
    numbers of images.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """The layers' buffers become views of one tensor, which is changed in place."""
        self._live = _flatten_buffers(layers, ("running_mean", "running_var"))
        self._counters = _flatten_buffers(layers, ("num_batches_tracked",))
        self._before, self._counters_before = self._live.clone(), self._counters.clone()
        # The last element counts images, so that one sum over the workers is enough.
        self._sum = torch.zeros(len(self._live) + 1, device=self._live.device)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Save the statistics from which every lane of this step starts."""
        self._before.copy_(self._live)
        self._counters_before.copy_(self._counters)
        self._sum.zero_()

    @torch.no_grad()
    def end_lane(self, images: int) -> None:
        """Add the statistics after a lane of `images` images to the sum, and restore them."""
        self._sum[:-1].add_(self._live, alpha=images)
        self._sum[-1] += images
        self.undo_step()

    @torch.no_grad()
    def end_step(self, sum_over_workers: Callable[[Tensor], Tensor]) -> None:
        """Set the statistics to the mean over the lanes of all workers, if they have images."""
        sums = sum_over_workers(self._sum)
        mean = sums[:-1] / sums[-1].clamp(min=1)
        self._live.copy_(torch.where(sums[-1] > 0, mean, self._before))
        self._counters.add_(sums[-1] > 0)  # counted once per step, too

    @torch.no_grad()
    def undo_step(self, *, unless: Tensor | None = None) -> None:
        """Restore the statistics from before the step, unless `unless` ([] bool) is true."""
        if unless is None:
            self._live.copy_(self._before)
            self._counters.copy_(self._counters_before)
            return
        self._live.copy_(torch.where(unless, self._live, self._before))
        self._counters.copy_(torch.where(unless, self._counters, self._counters_before))


def _flatten_buffers(layers: Sequence[nn.Module], names: Sequence[str]) -> Tensor:
    """Move the layers' buffers of these names into one tensor, so that one call changes all."""
    buffers = [layer.get_buffer(name) for layer in layers for name in names]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    views = iter(torch.split(flat, [buffer.numel() for buffer in buffers]))
    for layer in layers:
        for name in names:
            setattr(layer, name, next(views).view_as(layer.get_buffer(name)))
    return flat
