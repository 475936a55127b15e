"""What the jobs that judge or predict by a release have in common."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro

from effnet_ray.cli import flags as shared
from effnet_ray.cli.terminal import Terminal
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease, load_release


@dataclass(frozen=True)
class WorkerFlags:
    """Who computes; what comes of it does not depend on that."""

    workers: str = "2"
    """Processes that each hold the network: N, or MIN:MAX to grow and shrink with the cluster.
    Default: EFFNET_WORKERS, else 2."""
    gpus_per_worker: float = 0
    """GPUs per worker; 0 computes on CPUs. Default: EFFNET_GPUS_PER_WORKER, else 0."""
    accelerator: str = ""
    """Which GPUs, as Ray names them: L4, L40S, A100, …; several with commas between. Default:
    any."""
    cores: int | None = None
    """CPU cores of each worker; not given: the machine's, over the workers on it. With the same
    number, what comes of it is the same to the last digit."""
    decode_tasks: int | None = None
    """Parallel decode tasks per worker; not given: one more than a machine's workers have cores,
    over the workers."""
    prefetch_mb: int | None = None
    """Decoded images to hold ahead of each worker, MB; not given: 320 for each decode task, or
    what the object store has room for."""

    @property
    def placement(self) -> Placement:
        """The same, for whoever leases. Raises RecipeError for what cannot be."""
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
    """Which release, and where it computes."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or its folder's URI."""
    store: str = ""
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    workers: tyro.conf.OmitArgPrefixes[WorkerFlags] = field(default_factory=WorkerFlags)
    local: bool = False
    """On this machine alone, whatever cluster the job was submitted to."""
    verbose: bool = False
    """Show Ray's own logs."""

    def open(self) -> LoadedRelease:
        """The release. Raises ReleaseError."""
        return load_release(self.model, self.store)

    def connecting(self, people: Terminal) -> shared.Connect:
        """Joins or starts Ray, and says which."""
        return shared.connect_as(people, local=self.local, verbose=self.verbose)


Job = TypeVar("Job", bound=ReleaseFlags)


def defaults(job: type[Job], **more: Any) -> Job:
    """The job's flags as a cluster's files set them; `more` are its own."""
    env = shared.environment()
    placement = env["placement"]
    workers = WorkerFlags(workers=placement.workers, gpus_per_worker=placement.gpus_per_worker)
    return job(model=tyro.MISSING, store=env["where"].store, workers=workers, **more)
