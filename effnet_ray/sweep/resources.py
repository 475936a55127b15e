"""Workers for each variant's trials, and how many trials run at once. No Ray.

A device trains most images per second when one trial has it alone, so a trial takes one device
and several trials run side by side. If a round has fewer trials than there are devices, each
trial takes several devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from effnet_ray.placement import Placement

MAX_DEVICES = 8
"""Devices a trial takes unless --workers says otherwise: those of one common cloud machine."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a cluster has, or will have once it has scaled up."""

    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """How the hardware is divided among trials."""

    placements: dict[str, Placement]
    """Variant → where its trials run."""
    concurrent: int
    """Trials that run side by side: at most as many as fit, since two half-placed trials would
    deadlock."""
    devices: int
    """GPUs, or CPU cores on a cluster without GPUs."""


def allocate(
    placement: Placement,
    workers: str | None,
    rounds: Sequence[Mapping[str, int]],
    batch_size: int,
    hardware: Hardware,
) -> Allocation:
    """Divide the hardware over the schedule's rounds; `workers` per trial, if the user set it."""
    on_gpus, share = placement.on_gpu, placement.gpus_per_worker
    devices = hardware.gpus / share if share else hardware.cpus
    devices = max(1, int(devices))
    placements: dict[str, Placement] = {}
    for round_ in rounds:
        free = min(MAX_DEVICES, devices // sum(round_.values())) if on_gpus else 1
        chosen = workers or str(_largest_divisor(batch_size, max(1, free)))
        placements |= dict.fromkeys(round_, replace(placement, workers=chosen))
    fewest = min(p.worker_range[0] for p in placements.values())
    concurrent = max(1, devices // fewest)
    if placement.cores is None:
        cores = max(1, int(hardware.cpus // (concurrent * fewest)))
        placements = {name: replace(p, cores=cores) for name, p in placements.items()}
    return Allocation(placements, concurrent, devices)


def _largest_divisor(batch_size: int, limit: int) -> int:
    """Largest number of workers, at most `limit`, that get equal shares of a batch."""
    return max(n for n in range(1, limit + 1) if batch_size % n == 0)
