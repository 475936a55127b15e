"""The flags that `evaluate` and `predict` share: a release, and the workers that use it."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from effnet_ray.cli import flags
from effnet_ray.cli.terminal import Terminal
from effnet_ray.placement import Placement, Workers

if TYPE_CHECKING:
    from effnet_ray.release.load import LoadedRelease


@dataclass(frozen=True, kw_only=True)
class ReleaseFlags:
    """The flags of jobs that use a release."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or the URI of its folder."""
    store: str = ""
    """The model store. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    workers: Annotated[tyro.conf.OmitArgPrefixes[Workers], tyro.conf.arg(name="Cluster")] = field(
        default_factory=Workers
    )
    local: bool = False
    """Use this machine only, even if the job was submitted to a cluster."""
    verbose: bool = False
    """Show Ray's own logs."""

    @property
    def placement(self) -> Placement:
        """The workers as a Placement."""
        return Placement(**asdict(self.workers))

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
    workers = flags.default_workers()
    return job_flags(model=tyro.MISSING, store=flags.default_store(), workers=workers, **options)
