"""Placement: settings that decide only where and how fast a run executes.

A change of these settings never changes a loss curve beyond floating-point noise; whatever does
change it belongs to a Recipe.
"""

import math
import re
from dataclasses import dataclass

from effnet_ray.schema import require

ACCELERATOR = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")
"""A valid label value in Ray, and in Kubernetes."""
PREFETCH_MB = 320
"""Default for each decode task: eight chunks of 256 views of 224 px."""
MIN_PREFETCH_MB = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Settings that decide only where and how fast a run executes."""

    workers: str = "2"
    """Training workers: N, or MIN:MAX to grow and shrink with the cluster (elastic training)."""
    gpus_per_worker: float = 0
    """GPUs per worker: a whole number, or a share of one GPU. 0: train on CPUs."""
    accelerator: str = ""
    """GPU types, as Ray names them: L4, L40S, A100, …; several separated by commas. Default:
    any."""
    checkpoint_every: int = 0
    """Steps between checkpoints, in addition to one at the end of each epoch. 0: only at the end
    of each epoch."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; the best one is always kept."""
    max_failures: int = 3
    """Maximum number of worker failures to recover from."""
    cores: int | None = None
    """CPU cores per worker, including decoding. Default: the machine's cores, shared among this
    run's workers on it."""
    decode_tasks: int | None = None
    """Parallel image-decoding tasks per worker. Default: the machine's cores plus one, shared
    among its workers."""
    prefetch_mb: int | None = None
    """Prefetch buffer of decoded images per worker, MB, at least 16. Default: 320 for each decode
    task, or less if the object store is smaller."""
    max_bad_fraction: float = 0.01
    """Maximum share of unreadable images per split and epoch, 0 to 1. Above it the run fails, but
    a single unreadable image is allowed. 0: fail at the first."""
    audit: bool = False
    """Record the images of each step, as Parquet files in the run's audit/ folder."""

    def __post_init__(self) -> None:
        self._check_workers()
        checks: tuple[tuple[str, bool, str], ...] = (
            ("checkpoint_every", self.checkpoint_every >= 0, "0 or more steps"),
            ("keep_checkpoints", self.keep_checkpoints >= 1, "1 or more"),
            ("max_failures", self.max_failures >= 0, "0 or more"),
            ("cores", self.cores is None or self.cores >= 1, "1 or more"),
            ("decode_tasks", self.decode_tasks is None or self.decode_tasks >= 1, "1 or more"),
            (
                "prefetch_mb",
                self.prefetch_mb is None or self.prefetch_mb >= MIN_PREFETCH_MB,
                f"{MIN_PREFETCH_MB} or more",
            ),
            ("max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "0 to 1"),
        )
        for name, ok, expected in checks:
            require(ok, name, getattr(self, name), expected)

    def _check_workers(self) -> None:
        low, high = self.worker_range
        require(1 <= low <= high, "workers", self.workers, "N or MIN:MAX, 1 or more")
        gpus = self.gpus_per_worker
        require(
            0 <= gpus <= 1 or (1 < gpus < math.inf and gpus % 1 == 0),
            "gpus_per_worker",
            gpus,
            "a share of one GPU, or a whole number",
        )
        valid = all(map(ACCELERATOR.fullmatch, self.accelerators))
        require(
            valid and (not self.accelerators or gpus > 0),
            "accelerator",
            self.accelerators,
            "names like L4 or L4,L40S, with gpus_per_worker > 0",
        )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        try:
            numbers = [int(part) for part in self.workers.split(":")]
        except ValueError:
            numbers = []
        require(len(numbers) in (1, 2), "workers", self.workers, "N or MIN:MAX, 1 or more")
        return numbers[0], numbers[-1]

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The allowed GPU types; empty for any."""
        return tuple(self.accelerator.split(",")) if self.accelerator else ()

    def decoding(self, cores: int, workers: int, store_mb: float = math.inf) -> tuple[int, int]:
        """Decode tasks, and MB to prefetch, for each of a machine's workers.

        One more task than cores, so that no core waits while Ray schedules the next task. At most
        half of the object store is used for prefetching; the rest is left to other objects, such
        as the first chunks of the next window.
        """
        tasks = self.decode_tasks or max(1, (cores + 1) // workers)
        default_mb = min(PREFETCH_MB * tasks, store_mb / 2 / workers)
        return tasks, self.prefetch_mb or max(MIN_PREFETCH_MB, int(default_mb))
