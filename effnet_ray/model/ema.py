"""The exponential moving average (EMA) of a network's weights."""

import torch
from torch import Tensor

from effnet_ray.model.network import Network


class MovingAverage:
    """Updates the averaged network from the trained one, BatchNorm statistics included."""

    def __init__(self, averaged: Network, network: Network, decay: float) -> None:
        """Keeps references to the tensors: create it after `RunningStatistics` replaced some."""
        pairs = list(
            zip(averaged.state_dict().values(), network.state_dict().values(), strict=True)
        )
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages = [average for average, _ in floats]
        self._values = [value for _, value in floats]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._averaged_counters = [average for average, _ in counters]
        self._counters = [value for _, value in counters]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int, finite: Tensor) -> None:
        """Move the average towards the weights, after optimizer step `step` (0-based).

        Unless the step was finite ([] bool), the average stays as it is.

        The decay rises to its value as (1 + n) / (10 + n), n being the number of earlier steps:
        TensorFlow's `ExponentialMovingAverage(num_updates)`, with which EfficientNet was trained.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        change = torch._foreach_sub(self._values, self._averages)
        torch._foreach_mul_(change, (1 - decay) * finite)
        torch._foreach_add_(self._averages, change)
        torch._foreach_copy_(self._averaged_counters, self._counters)
