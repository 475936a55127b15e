"""Placement: what decides only where and how fast a run goes.

Changing it never changes a loss curve beyond float noise: that is why it and Recipe are two.
"""

import math
import re
from dataclasses import dataclass

from effnet_ray.schema import require

ACCELERATOR = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")
"""What a label's value may be in Ray, and in Kubernetes."""
PREFETCH_MB = 320
"""For each decode task: eight chunks of 256 views of 224 px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Everything that decides only where and how fast a run goes."""

    workers: str = "2"
    """Training workers: N, or MIN:MAX to grow and shrink with the cluster."""
    gpus_per_worker: float = 0
    """GPUs per worker; 0 trains on CPUs."""
    accelerator: str = ""
    """Which GPUs, as Ray names them: L4, L40S, A100, …; several with commas between. Default:
    any."""
    checkpoint_every: int = 0
    """Steps between checkpoints, beside the one at every epoch's end; 0: only those."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; the best one is kept besides."""
    max_failures: int = 3
    """Worker failures to recover from before the run is given up."""
    cores: int | None = None
    """CPU cores that each worker may count on, its decoding included; not given: the machine's,
    over this run's workers on it."""
    decode_tasks: int | None = None
    """Parallel decode tasks per worker; not given: one more than a machine's workers have
    cores, over the workers."""
    prefetch_mb: int | None = None
    """Decoded images to hold ahead of each worker, MB; not given: 320 for each decode task,
    or what the object store has room for."""
    max_bad_fraction: float = 0.01
    """The run stops when more than this share of a split's images, and more than one image,
    cannot be read in an epoch; 0 stops at the first."""
    audit: bool = False
    """Write which images every step used, as Parquet, under the run's audit/ folder."""

    def __post_init__(self) -> None:
        low, high = self.worker_range
        require(1 <= low <= high, "workers", self.workers, "N or MIN:MAX, 1 or more")
        gpus = self.gpus_per_worker
        require(0 <= gpus <= 1 or (1 < gpus < math.inf and gpus % 1 == 0), "gpus_per_worker",
                gpus, "a share of one GPU, or a whole number")  # fmt: skip
        named = all(map(ACCELERATOR.fullmatch, self.accelerators))
        require(
            named and (not self.accelerators or self.gpus_per_worker > 0),
            "accelerator", self.accelerator, "names like L4 or L4,L40S, with gpus_per_worker > 0",
        )  # fmt: skip
        require(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every,
                 "0 or more steps")  # fmt: skip
        require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "1 or more")
        require(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        require(self.cores is None or self.cores >= 1, "cores", self.cores, "1 or more")
        require(self.decode_tasks is None or self.decode_tasks >= 1, "decode_tasks",
                 self.decode_tasks, "1 or more")  # fmt: skip
        require(self.prefetch_mb is None or self.prefetch_mb >= 16, "prefetch_mb",
                 self.prefetch_mb, "16 or more")  # fmt: skip
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", self.max_bad_fraction,
                 "0 to 1")  # fmt: skip

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        try:
            numbers = [int(part) for part in self.workers.split(":")]
        except ValueError:
            numbers = []
        require(len(numbers) in (1, 2), "workers", self.workers, "N or MIN:MAX, 1 or more")
        return numbers[0], numbers[-1]

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The GPUs' types; none: any."""
        return tuple(self.accelerator.split(",")) if self.accelerator else ()

    def decoding(self, cores: int, workers: int, store_mb: float = math.inf) -> tuple[int, int]:
        """Decode tasks and MB ahead for each of a machine's workers.

        One task more than there are cores, so that none waits while Ray hands out the next. Half
        of the object store is left to whatever else there is, like the next window's start.
        """
        tasks = self.decode_tasks or max(1, (cores + 1) // workers)
        ahead = min(PREFETCH_MB * tasks, store_mb / 2 / workers)
        return tasks, self.prefetch_mb or max(16, int(ahead))
