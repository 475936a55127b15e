"""The flags that `evaluate` and `predict` share: a release, and the workers that use it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from effnet_ray.cli import flags
from effnet_ray.cli.terminal import Terminal
from effnet_ray.placement import Placement

if TYPE_CHECKING:
    from effnet_ray.release.load import LoadedRelease


@dataclass(frozen=True)
class WorkerFlags:
    """Workers and hardware. They do not change results."""

    workers: str = "2"
    """Worker processes, each with a copy of the network: N, or MIN:MAX to scale with the cluster.
    Default: EFFNET_WORKERS, else 2."""
    gpus_per_worker: float = 0
    """GPUs per worker; 0 uses CPUs. Default: EFFNET_GPUS_PER_WORKER, else 0."""
    accelerator: str = ""
    """GPU types, by Ray's names (L4, L40S, A100, …), separated by commas. Default: any."""
    cores: int | None = None
    """CPU cores per worker. CPU results are bit-identical between runs with the same value.
    Default: the machine's cores, shared equally by the workers on it."""
    decode_tasks: int | None = None
    """Parallel image decoding tasks per worker. Default: one more than the machine has cores,
    shared equally by the workers on it."""
    prefetch_mb: int | None = None
    """Decoded images to buffer per worker, MB. Default: 320 per decode task, or less if Ray's
    object store is smaller."""

    @property
    def placement(self) -> Placement:
        """These flags as a Placement. Raises RecipeError for invalid values."""
        return Placement(
            workers=self.workers,
            gpus_per_worker=self.gpus_per_worker,
            accelerator=self.accelerator,
            cores=self.cores,
            decode_tasks=self.decode_tasks,
            prefetch_mb=self.prefetch_mb,
        )


@dataclass(frozen=True, kw_only=True)
class ReleaseFlags:
    """The flags of jobs that use a release."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or the URI of its folder."""
    store: str = ""
    """The model store. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    workers: Annotated[tyro.conf.OmitArgPrefixes[WorkerFlags], tyro.conf.arg(name="Cluster")] = (
        field(default_factory=WorkerFlags)
    )
    local: bool = False
    """Use this machine only, even if the job was submitted to a cluster."""
    verbose: bool = False
    """Show Ray's own logs."""

    def load(self) -> "LoadedRelease":
        """The verified release. Raises ReleaseError."""
        from effnet_ray.release.load import load_release

        return load_release(self.model, self.store)

    def connector(self, terminal: Terminal) -> flags.Connect:
        """A function that joins or starts Ray; see `flags.connector`."""
        return flags.connector(terminal, local=self.local, verbose=self.verbose)


JobFlags = TypeVar("JobFlags", bound=ReleaseFlags)


def defaults(job_flags: type[JobFlags], **options: Any) -> JobFlags:
    """The job's flags as the environment sets them; `options` are its own fields."""
    placement = flags.default_placement()
    workers = WorkerFlags(workers=placement.workers, gpus_per_worker=placement.gpus_per_worker)
    return job_flags(model=tyro.MISSING, store=flags.default_store(), workers=workers, **options)
