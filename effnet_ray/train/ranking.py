"""Average precision: the one figure of an evaluation that is no sum over images."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from effnet_ray.train.precision import average_precisions


class ScoreCollector:
    """The scores of a worker's eval images; 5 bytes for each image and class."""

    def __init__(self, classes: int, device: torch.device) -> None:
        # A worker without images takes part all the same.
        self._scores = [torch.empty(0, classes, device=device)]
        self._labels = [torch.empty(0, classes, dtype=torch.uint8, device=device)]

    def add(self, logits: Tensor, label: Tensor, weight: Tensor) -> None:
        """Some images: logits [B, K], label [B, K] of 0 and 1; those of weight 0 do not count."""
        readable = weight > 0
        self._scores.append(logits.float()[readable])
        self._labels.append(label[readable].to(torch.uint8))  # the same bytes from every worker

    def over_workers(self) -> tuple[float | None, ...]:
        """Of every class, over all workers, each of which must call it; the same on each.

        See `average_precisions`.
        """
        scores = _of_all_workers(torch.cat(self._scores)).cpu().numpy()
        labels = _of_all_workers(torch.cat(self._labels)).cpu().numpy()
        return average_precisions(labels, scores)


def _of_all_workers(mine: Tensor) -> Tensor:
    """The rows [n, K] of all workers, in the order of these."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    return torch.cat(list(_gathered(mine)))


def _gathered(mine: Tensor) -> Iterator[Tensor]:
    """Each worker's rows: sent at one length, since NCCL knows no other."""
    workers = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(workers)]
    dist.all_gather(counts, torch.tensor([len(mine)], device=mine.device))
    most = max(map(int, counts))
    padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(workers)]
    dist.all_gather(parts, padded)
    yield from (part[: int(count)] for part, count in zip(parts, counts, strict=True))
