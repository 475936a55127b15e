"""From a finished run to a Release: the best checkpoint, with all that a reader needs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import CheckpointError, ReleaseError
from effnet_ray.inference import plots
from effnet_ray.model import network, pretrained
from effnet_ray.publish.card import card
from effnet_ray.publish.provenance import provenance
from effnet_ray.publish.test_score import Scoring
from effnet_ray.release.store import ModelStore, Release, record_files
from effnet_ray.train import checkpoint, run_record
from effnet_ray.train.checkpoint import Checkpoint
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.per_class import ClassMetrics, has_average_precision
from effnet_ray.train.run_record import Result, Run

CARD, CURVES = "README.md", "curves.png"


def release_run(
    result: Result,
    store: str,
    *,
    name: str | None = None,
    found_by: Mapping[str, Any] | None = None,
    single_writer: bool = False,
    scoring: Scoring | None = None,
) -> Release:
    """Publish a finished run's best checkpoint in `store`, under `name` or the run's own.

    `found_by` is the provenance of a run that a sweep tried; `single_writer`: no other publishes
    there at the same time; `scoring` scores the test split, if the data has one. A run that was
    released already is found, not scored and not released again. Raises ReleaseError where the
    run's record or best checkpoint is gone or damaged, and what `scoring` raises.
    """
    where = ModelStore(storage.absolute(store), single_writer)
    try:
        chosen = _open(result)
    except CheckpointError as error:
        found = where.released(name or result.run, run=result.run_uri)
        if found:
            return found
        raise ReleaseError(
            f"run {result.run!r} cannot be released: {error}: restore it, or train again under "
            "another --name"
        ) from error
    name = name or chosen.run.name
    digest = hashlib.sha256(chosen.data).hexdigest()
    found = where.released(name, run=result.run_uri, weights_sha256=digest)
    if found:
        return found
    told = provenance(chosen.run, result, chosen.at.step, chosen.history, found_by)
    test: dict[str, float] = {}
    if scoring:
        test = scoring(result.run_uri, _files(name, chosen, {}), told, chosen.run.recipe.limit)
    return where.publish(name, _files(name, chosen, test), told | test)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The best checkpoint of a run."""

    run: Run
    history: Sequence[EpochReport]
    """Of the whole run, to its last epoch."""
    at: Checkpoint
    winner: EpochReport
    data: bytes
    """The weights that are to be released."""


def _open(result: Result) -> _Chosen:
    """Raises CheckpointError, and ReleaseError where the run has no record."""
    run = run_record.load(result.run_uri)
    if run is None:
        raise ReleaseError(f"{result.run_uri} has no {run_record.RUN}: run the same command again")
    at = checkpoint.open_checkpoint(result.checkpoint)
    winner = best(at.history)
    assert winner is not None  # the best checkpoint is one of an epoch's end
    data = at.read(checkpoint.AVERAGED if winner.averaged else checkpoint.WEIGHTS)
    folder = storage.join(result.run_uri, run_record.CHECKPOINTS, checkpoint.folder(result.steps))
    return _Chosen(run, checkpoint.open_checkpoint(folder).history, at, winner, data)


def _files(name: str, chosen: _Chosen, test: Mapping[str, float]) -> dict[str, bytes]:
    """What is released, and `test`, the figures of the test split."""
    run, found = chosen.run, chosen.at.per_class
    built = network.build(run.recipe, run.spec, len(run.classes))
    metrics = {
        "best": asdict(chosen.winner),
        **({"test": dict(test)} if test else {}),
        **({"per_class": _told(run.classes, found)} if found else {}),
        "history": [asdict(report) for report in chosen.history],
    }
    return {
        checkpoint.WEIGHTS: chosen.data,
        CURVES: plots.picture(chosen.history),
        CARD: card(name, run, chosen.history, found, test).encode(),
        **record_files(
            config=pretrained.hub_config(built, run.spec, run.classes),
            recipe=run.recipe,
            metrics=metrics,
        ),
    }


def _told(names: tuple[str, ...], found: Sequence[ClassMetrics]) -> list[dict[str, Any]]:
    """Each class's figures on the eval split."""
    with_ap = has_average_precision(found)
    return [
        {
            "class": names[each.index],
            "images": each.support,
            "precision": each.precision,
            "recall": each.recall,
            "f1": each.f1,
            **({"ap": each.ap} if with_ap else {}),
        }
        for each in found
    ]
