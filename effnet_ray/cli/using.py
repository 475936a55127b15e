"""What the jobs that judge or predict by a release have in common."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro

from effnet_ray.cli import flags as shared
from effnet_ray.console.people import People
from effnet_ray.placement import Placement
from effnet_ray.use.opened import Opened, open_release


@dataclass(frozen=True)
class Workers:
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
class Using:
    """Which release, and where it computes."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or its folder's URI."""
    store: str = ""
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    workers: tyro.conf.OmitArgPrefixes[Workers] = field(default_factory=Workers)
    local: bool = False
    """On this machine alone, whatever cluster the job was submitted to."""
    verbose: bool = False
    """Show Ray's own logs."""

    def open(self) -> Opened:
        """The release. Raises ReleaseError."""
        return open_release(self.model, self.store)

    def connecting(self, people: People) -> shared.Connect:
        """Joins or starts Ray, and says which."""
        return shared.connecting(people, local=self.local, verbose=self.verbose)


Job = TypeVar("Job", bound=Using)


def usual(job: type[Job], **more: Any) -> Job:
    """The job's flags as a cluster's files set them; `more` are its own."""
    env = shared.environment()
    placement = env["placement"]
    workers = Workers(workers=placement.workers, gpus_per_worker=placement.gpus_per_worker)
    return job(model=tyro.MISSING, store=env["where"].store, workers=workers, **more)
