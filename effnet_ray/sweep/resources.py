"""Who runs where: workers for each variant's trials, and how many trials side by side. No Ray.

A device trains most images when it trains them alone, so a trial takes one, and several trials
run side by side. Where fewer trials than devices are left, each takes more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from effnet_ray.placement import Placement

MOST = 8
"""Devices that a trial takes by itself: those of one machine, as clouds rent them."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a cluster has, or will have when it has grown."""

    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True)
class Shares:
    """How the hardware is shared out."""

    placements: dict[str, Placement]
    """By variant."""
    concurrent: int
    """Trials side by side. As many as have room: two that wait for one another have none."""
    devices: int
    """GPUs, or cores where there are none."""


def share_out(
    placement: Placement,
    workers: str | None,
    waves: Sequence[Mapping[str, int]],
    batch_size: int,
    hardware: Hardware,
) -> Shares:
    """Shares for the ladder's waves. `workers`: of each trial, where a person said so."""
    on_gpus = placement.gpus_per_worker > 0
    devices = hardware.gpus / placement.gpus_per_worker if on_gpus else hardware.cpus
    devices = max(1, int(devices))
    chosen: dict[str, Placement] = {}
    for wave in waves:
        free = min(MOST, devices // sum(wave.values())) if on_gpus else 1
        own = workers or str(_dividing(batch_size, max(1, free)))
        chosen |= dict.fromkeys(wave, replace(placement, workers=own))
    fewest = min(p.worker_range[0] for p in chosen.values())
    concurrent = max(1, devices // fewest)
    if placement.cores is None:
        cores = max(1, int(hardware.cpus // (concurrent * fewest)))
        chosen = {name: replace(p, cores=cores) for name, p in chosen.items()}
    return Shares(chosen, concurrent, devices)


def _dividing(batch_size: int, most: int) -> int:
    """Largest number of workers up to `most` that have equal parts of a batch."""
    return max(n for n in range(1, most + 1) if batch_size % n == 0)
