"""Placement: settings that decide only where and how fast a run executes.

A change of these settings never changes a loss curve beyond floating-point noise; whatever does
change it belongs to a Recipe. The docstrings of the fields are the help of the flags.
"""

import math
import re
from dataclasses import dataclass

from effnet_ray.errors import RecipeError
from effnet_ray.schema import require

ACCELERATOR = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")
"""A valid label value in Ray, and in Kubernetes."""
MAX_WORKERS = 10_000
PREFETCH_MB = 320
"""Default for each decode task: eight chunks of 256 views of 224 px."""
MIN_PREFETCH_MB = 16
"""However small the object store is: 15 views of 600 px."""


def parse_worker_range(workers: str, name: str = "workers") -> tuple[int, int]:
    """Minimum and maximum of N or MIN:MAX. Raises RecipeError, which calls the value `name`."""
    try:
        low, *high = map(int, workers.split(":"))
    except ValueError:
        low, high = 0, []
    most = max(high, default=low)
    valid = len(high) <= 1 and 1 <= low <= most <= MAX_WORKERS
    expected = f"N, or MIN:MAX with MIN at most MAX, 1 or more, up to {MAX_WORKERS:,}"
    require(valid, name, workers, expected)
    return low, most


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Workers and their hardware, for training and for using a release."""

    workers: str = "2"
    """Worker processes, each with a copy of the network: N, or MIN:MAX to start with MIN and use
    up to MAX. Default: EFFNET_WORKERS, else 2."""
    gpus_per_worker: float | None = None
    """GPUs per worker: 1, or a share of one GPU. 0: use CPUs. Default: EFFNET_GPUS_PER_WORKER,
    else 1 if Ray has GPUs, or a share of them if they are fewer than the workers."""
    accelerator: str = ""
    """GPU types, as Ray names them: L4, L40S, A100, …; several separated by commas. Default:
    any."""
    cores: int | None = None
    """CPU cores per worker, including decoding. On CPUs, evaluations and predictions with the
    same value are bit-identical. Default: the machine's cores, shared among this run's workers on
    it."""
    decode_tasks: int | None = None
    """Parallel image-decoding tasks per worker. Default: the machine's cores plus one, shared
    among its workers, less one for each GPU worker that trains; and a share of the machines
    without workers."""
    prefetch_mb: int | None = None
    """Prefetch buffer of decoded images per worker, MB, at least 16. Default: 320 for each decode
    task, or less if the object store is smaller."""

    def __post_init__(self) -> None:
        self._check_workers()
        self._check_at_least("cores", 1)
        self._check_at_least("decode_tasks", 1)
        self._check_at_least("prefetch_mb", MIN_PREFETCH_MB)

    def _check_at_least(self, name: str, lowest: int) -> None:
        value = getattr(self, name)
        require(value is None or value >= lowest, name, value, f"{lowest} or more")

    def _check_workers(self) -> None:
        parse_worker_range(self.workers)
        gpus = self.gpus_per_worker
        require(
            gpus is None or 0 <= gpus <= 1,
            "gpus_per_worker",
            gpus,
            "0 to 1: a worker uses one GPU; for more GPUs, use more --workers",
        )
        valid = all(map(ACCELERATOR.fullmatch, self.accelerators))
        require(valid, "accelerator", self.accelerator, "names like L4 or L4,L40S")
        if self.accelerator and gpus == 0:
            raise RecipeError(f"--accelerator {self.accelerator} needs --gpus-per-worker above 0")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        return parse_worker_range(self.workers)

    @property
    def on_gpu(self) -> bool:
        """Whether workers use GPUs."""
        return bool(self.gpus_per_worker)

    @property
    def gpus(self) -> int:
        """GPUs in use when all workers run; 1 on CPUs."""
        if not self.gpus_per_worker:
            return 1
        return math.ceil(self.worker_range[1] / (1.000001 // self.gpus_per_worker))

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The allowed GPU types; empty for any."""
        return tuple(self.accelerator.split(",")) if self.accelerator else ()

    def decoding(
        self, cores: int, workers: int, store_mb: float = math.inf, elsewhere: float = 0
    ) -> tuple[int, int]:
        """Decode tasks, and MB to prefetch, for each of a machine's workers.

        `elsewhere`: tasks that each worker may run on other machines, besides.

        One more task than cores, so that no core waits while Ray schedules the next task. At most
        half of the object store is used for prefetching; the rest is left to other objects, such
        as the first chunks of the next window.
        """
        tasks = self.decode_tasks or max(1, (cores + 1) // workers) + int(elsewhere)
        default_mb = min(PREFETCH_MB * tasks, store_mb / 2 / workers)
        return tasks, self.prefetch_mb or max(MIN_PREFETCH_MB, int(default_mb))


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement(Workers):
    """Settings that decide only where and how fast a training run executes."""

    workers: str = "2"
    """Worker processes, each with a copy of the network: N, or MIN:MAX to grow and shrink with
    the cluster (elastic training). Default: EFFNET_WORKERS, else 2; with `tune`: chosen by the
    sweep, to keep all devices busy."""
    checkpoint_every: int = 0
    """Steps between checkpoints, in addition to one at the end of each epoch. 0: only at the end
    of each epoch."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; the best one is always kept."""
    max_failures: int = 3
    """Maximum number of worker failures to recover from."""
    max_bad_fraction: float = 0.01
    """Largest share of unreadable images in a split, 0 to 1; one is always allowed, unless 0.
    Above it the run fails."""
    audit: bool = False
    """Record the images of each step, as Parquet files in the run's audit/ folder."""

    def __post_init__(self) -> None:
        Workers.__post_init__(self)  # super() does not know the class that slots=True makes
        self._check_at_least("checkpoint_every", 0)
        self._check_at_least("keep_checkpoints", 1)
        self._check_at_least("max_failures", 0)
        bad = self.max_bad_fraction
        require(0 <= bad <= 1, "max_bad_fraction", bad, "0 to 1")
