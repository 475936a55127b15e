"""`models average`: release the mean of several checkpoints, if it is better than the best one."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from effnet_ray import storage
from effnet_ray.cli.flags import (
    connector,
    default_runs,
    default_single_writer,
    default_store,
    default_workers,
)
from effnet_ray.cli.terminal import Terminal
from effnet_ray.placement import Placement, Workers
from effnet_ray.publish.options import ReleaseOptions
from effnet_ray.release.store import ModelStore
from effnet_ray.schema import require

if TYPE_CHECKING:
    from effnet_ray.publish.test_score import Scoring
    from effnet_ray.train.average import Averaged, Candidate, Tried


@dataclass(frozen=True, kw_only=True)
class Average:
    """Average the weights of a run's checkpoints, or of a sweep's trials of one variant, and
    release the mean if it is better on the eval split than the best of them."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Name of a finished run or of a sweep, or the URI of its folder. A run needs several
    checkpoints: train it with --keep-checkpoints."""
    variant: str = ""
    """Of a sweep: whose trials to average. Default: its only variant."""
    most: int = 5
    """Checkpoints to try at most, the best first. One that does not help is left out."""
    name: str = ""
    """Name of the model. Default: the run's; of a sweep SWEEP-VARIANT."""
    data: str = ""
    """The packed data set. Default: that of the run."""
    runs: str = field(default_factory=default_runs)
    """Where runs keep checkpoints and records; not used for a URI. Default: EFFNET_RUNS, else
    ~/effnet-ray/runs."""
    store: str = field(default_factory=default_store)
    """The model store. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    single_writer: bool = field(default_factory=default_single_writer)
    """For a store whose server ignores conditional writes: publish anyway. You guarantee that only
    one job publishes at a time. Default: EFFNET_SINGLE_WRITER, else off."""
    test_split: bool = True
    """Score the released model on the test split, if the data set has one."""
    releasing: Annotated[
        tyro.conf.OmitArgPrefixes[ReleaseOptions], tyro.conf.arg(name="Release")
    ] = field(default_factory=ReleaseOptions)
    workers: Annotated[tyro.conf.OmitArgPrefixes[Workers], tyro.conf.arg(name="Cluster")] = field(
        default_factory=default_workers
    )

    @property
    def model_store(self) -> ModelStore:
        """The store."""
        return ModelStore(storage.absolute(self.store), self.single_writer)

    def scoring(self, data: str, terminal: Terminal) -> "Scoring | None":
        """How to score the test split; None with `--no-test-split`."""
        from effnet_ray.publish.test_score import Scoring

        if not self.test_split:
            return None
        connect = connector(terminal, local=False, verbose=False)
        placement = Placement(**asdict(self.workers))
        return Scoring(data, placement, connect, terminal.test_progress)


def average_checkpoints(flags: Average, terminal: Terminal) -> dict[str, Any]:
    """Run `models average`."""
    from effnet_ray.preflight.permissions import check_publishable
    from effnet_ray.publish.from_run import release_run
    from effnet_ray.train.average import average

    require(flags.most >= 2, "most", flags.most, "2 or more")
    uri = _source_uri(flags)
    name, candidates = _candidates(flags, uri)
    check_publishable(flags.store, single_writer=flags.single_writer)
    data = storage.absolute(flags.data) if flags.data else ""

    def on_tried(tried: "Tried") -> None:
        verdict = "kept" if tried.kept else "left out: no better with it"
        figures = f"{tried.score:.2%}, loss {tried.loss:.4f}"
        terminal.print(f"{tried.checkpoint}: {figures} ({verdict})")

    averaged = average(
        candidates, uri.rpartition("/")[0], name, data=data, most=flags.most, on_tried=on_tried
    )
    answer = {
        "tried": [asdict(tried) for tried in averaged.tried],
        "score": averaged.score,
        "loss": averaged.loss,
        "release": None,
        "release_uri": None,
    }
    if averaged.result is None:
        terminal.print("no average is better than the best checkpoint alone: nothing was released")
        return answer
    release = release_run(
        averaged.result,
        flags.model_store,
        name=flags.name or name,
        scoring=flags.scoring(data or candidates[0].run.data, terminal),
        options=flags.releasing,
    )
    terminal.print_summary(f"{release.reference}: {_gain(averaged)}", {"release": release.uri})
    return answer | {"release": release.reference, "release_uri": release.uri}


def _source_uri(flags: Average) -> str:
    """The folder of the run or sweep. The averaged run goes to the folder that it is in."""
    if "/" in flags.source:
        return storage.absolute(flags.source.rstrip("/"))
    return storage.join(storage.absolute(flags.runs), flags.source)


def _candidates(flags: Average, uri: str) -> "tuple[str, list[Candidate]]":
    """The model's default name and the checkpoints to average."""
    from effnet_ray.sweep.checkpoints import is_sweep, trial_candidates
    from effnet_ray.train.average import run_candidates

    name = uri.rpartition("/")[2]
    if not is_sweep(uri):
        return name, run_candidates(uri)
    variant, candidates = trial_candidates(uri, flags.variant)
    return f"{name}-{variant}", candidates


def _gain(averaged: "Averaged") -> str:
    """The scores of the average and of the best checkpoint, for people."""
    kept = sum(tried.kept for tried in averaged.tried)
    best = averaged.tried[0]
    return (
        f"eval {averaged.score:.2%}, loss {averaged.loss:.4f}, the mean of {kept} checkpoints; "
        f"the best alone {best.score:.2%}, {best.loss:.4f}"
    )
