"""What the workers of a group exchange. With one worker, nothing is sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_group_size: ContextVar[int | None] = ContextVar("group_size", default=None)


@contextmanager
def worker_group(size: int) -> Iterator[None]:
    """State how many workers the group has, for every collective within.

    When a machine dies, Ray Train destroys torch's process group on the other workers while they
    still train (ray 2.60 `train/torch/config.py`, `_shutdown_torch`). Collectives then raise
    torch's error; otherwise a worker would take its own sums for those of all workers.
    """
    token = _group_size.set(size)
    try:
        yield
    finally:
        _group_size.reset(token)


def group_size() -> int:
    """Number of workers: as stated by `worker_group`, or of torch's process group, or 1."""
    stated = _group_size.get()
    if stated is not None:
        return stated
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_workers(tensor: Tensor) -> Tensor:
    """Sum a tensor over all workers, in place, and return it."""
    if group_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def min_over_workers(value: int) -> int:
    """The smallest value of any worker."""
    tensor = torch.tensor([value])
    if group_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


def broadcast(tensor: Tensor) -> Tensor:
    """Overwrite a tensor with worker 0's, and return it."""
    if group_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def value_of_worker_0(value: int) -> int:
    """Worker 0's value, on every worker."""
    return int(broadcast(torch.tensor([value])))


FIXED_POINT = 2.0**32
"""Sums are exact as integers of this unit."""
MAX_ABS = 2.0**30
"""Largest absolute value, and largest sum, that fixed point in int64 can represent."""


def to_fixed_point(values: Tensor) -> Tensor:
    """Float64 values as int64, whose sum does not depend on the order of its terms.

    A last element counts, here and in sums, how often some value was not finite or too large.
    """
    bad = ~(values.abs() < MAX_ABS)
    units = (values.masked_fill(bad, 0) * FIXED_POINT).round().long()
    return torch.cat([units, bad.any().long()[None]])


def fixed_point_sum_over_workers(values: Tensor) -> Tensor:
    """Float64 sum over all workers of sums of `to_fixed_point`.

    It is the same however the terms are shared among workers. Raises FloatingPointError, on every
    worker, if some value was not finite or too large.
    """
    total = sum_over_workers(values)
    if int(total[-1]):
        raise FloatingPointError("a sum over workers is not finite")
    return total[:-1] / FIXED_POINT


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [n, K] of all workers, in rank order; n may differ."""
    workers = group_size()
    return rows if workers == 1 else torch.cat(list(_gather_padded(rows, workers)))


def _gather_padded(rows: Tensor, workers: int) -> Iterator[Tensor]:
    """Each worker's rows; sent padded to one length, which NCCL requires."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(workers)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    max_rows = max(map(int, counts))
    padded = torch.cat([rows, rows.new_zeros(max_rows - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(workers)]
    dist.all_gather(parts, padded)
    yield from (part[: int(count)] for part, count in zip(parts, counts, strict=True))
