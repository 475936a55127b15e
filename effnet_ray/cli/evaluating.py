"""`jobs/evaluate.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from effnet_ray import storage
from effnet_ray.check.places import writable
from effnet_ray.cli import flags as shared
from effnet_ray.console.evaluating import show
from effnet_ray.console.people import People
from effnet_ray.errors import RecipeError
from effnet_ray.placement import Placement
from effnet_ray.train import session
from effnet_ray.use import report as reports
from effnet_ray.use.evaluate import Evaluation, evaluate
from effnet_ray.use.opened import open_release


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


@dataclass(frozen=True)
class Evaluate:
    """Judge a release by every image of a split, once each, and look at its mistakes."""

    model: str
    """A release: NAME@vN or NAME@ALIAS of the store, or its folder's URI."""
    data: str = ""
    """The packed data set. Default: EFFNET_DATA, else the built-in sample data."""
    store: str = ""
    """Where releases are. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    split: Literal["eval", "test", "train"] = "eval"
    """Which images of it."""
    report: str = ""
    """FILE.html: write one self-contained page with curves, confusion, calibration and mistakes
    there; a path or an s3:// URI."""
    examples: int = 24
    """How many mistakes, and how many suspected label errors, the page shows."""
    workers: tyro.conf.OmitArgPrefixes[Workers] = field(default_factory=Workers)
    local: bool = False
    """On this machine alone, whatever cluster the job was submitted to."""
    verbose: bool = False
    """Show Ray's own logs."""


def evaluate_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/evaluate.py`."""
    env = shared.environment()
    where, placement = env["where"], env["placement"]
    workers = Workers(workers=placement.workers, gpus_per_worker=placement.gpus_per_worker)
    usual = {"data": where.data, "store": where.store, "workers": workers}
    flags = tyro.cli(Evaluate, args=argv, default=Evaluate(tyro.MISSING, **usual))
    if flags.examples < 0:
        raise RecipeError(f"examples is {flags.examples}: expected 0 or more")
    page = _page(flags.report)
    with People() as people:
        found = _found(flags, people)
        if page:
            storage.write_bytes(page, reports.html(found))
        show(people, found, page)
    figures = found.figures
    return {
        "model": found.release.reference,
        "split": found.split,
        "eval_top1": figures.top1,
        "eval_top5": figures.top5,
        "eval_loss": figures.loss,
        "images": figures.seen,
        "quarantined": len(figures.bad),
        "f1": figures.macro_f1,
        "ece": figures.ece,
        "suspected_labels": figures.suspected,
        **({"report": page} if page else {}),
    }


def _page(report: str) -> str:
    """Where the page is to be. Raises InputError where it could not be written in the end."""
    if not report:
        return ""
    if not report.endswith(".html"):
        raise RecipeError(f"report is {report!r}: expected the name of a file, as in out.html")
    page = storage.absolute(report)
    writable(page.rpartition("/")[0], "the report")
    return page


def _found(flags: Evaluate, people: People) -> Evaluation:
    """The evaluation; people see how it comes about."""
    placement = flags.workers.placement
    release = open_release(flags.model, flags.store)

    def connect(placement: Placement) -> None:
        people.say("Ray: " + session.connect(placement, local=flags.local, verbose=flags.verbose))

    return evaluate(
        release,
        flags.data or shared.sample(people),
        placement,
        split=flags.split,
        examples=flags.examples,
        thumbnails=bool(flags.report),
        tell=lambda done, images: people.counted("evaluating", "evaluated", done, images),
        connect=connect,
    )
