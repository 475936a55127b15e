"""The moving average of a network's weights (EMA)."""

import torch

from effnet_ray.model.network import Network


class MovingAverage:
    """Lets one network follow another, its BatchNorm statistics too."""

    def __init__(self, averaged: Network, network: Network, decay: float) -> None:
        """Both keep their tensors: what replaces one (`RunningStatistics`) comes before."""
        pairs = list(
            zip(averaged.state_dict().values(), network.state_dict().values(), strict=True)
        )
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._mine = [mine for mine, _ in floating]
        self._theirs = [theirs for _, theirs in floating]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._my_counters = [mine for mine, _ in counters]
        self._their_counters = [theirs for _, theirs in counters]
        self._decay = decay

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """A little closer, after update `step` (0-based).

        The decay rises to its value as (1 + n) / (10 + n), n the updates before this one:
        TensorFlow's `ExponentialMovingAverage(num_updates)`, with which EfficientNet was trained.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
        torch._foreach_copy_(self._my_counters, self._their_counters)
