"""From a finished run to a Release: the best checkpoint, with all that a reader needs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import CheckpointError, ReleaseError
from effnet_ray.model import network, weights
from effnet_ray.store.card import card
from effnet_ray.store.provenance import provenance
from effnet_ray.store.releases import ModelStore, Release, record_files
from effnet_ray.train import checkpoint, record
from effnet_ray.train.record import Result
from effnet_ray.train.reports import best


def release_run(
    result: Result,
    store: str,
    *,
    name: str | None = None,
    found_by: Mapping[str, Any] | None = None,
    single_writer: bool = False,
) -> Release:
    """Publish a finished run's best checkpoint in `store`, under `name` or the run's own.

    `found_by` is the provenance of a run that a sweep tried; `single_writer`: no other publishes
    there at the same time. A run that was released already is found, not released again. Raises
    ReleaseError where the run's record or best checkpoint is gone or damaged.
    """
    run = record.load(result.run_uri)
    if run is None:
        raise ReleaseError(f"{result.run_uri} has no {record.RUN}: run the same command again")
    try:
        chosen = checkpoint.open_checkpoint(result.checkpoint)
        winner = best(chosen.history)
        assert winner is not None  # the best checkpoint is one of an epoch's end
        data = chosen.read(checkpoint.AVERAGED if winner.averaged else checkpoint.WEIGHTS)
    except CheckpointError as error:
        raise ReleaseError(f"run {run.name!r} cannot be released: {error}") from error
    history = [asdict(report) for report in chosen.history]
    built = network.build(run.recipe, run.spec, len(run.classes))
    files = {
        checkpoint.WEIGHTS: data,
        **record_files(
            config=weights.hub_config(built, run.spec, run.classes),
            recipe=run.recipe,
            metrics={"best": asdict(winner), "history": history},
        ),
        "README.md": card(name or run.name, run, result, chosen.history).encode(),
    }
    told = provenance(run, result, chosen.step, chosen.history, found_by)
    where = ModelStore(storage.absolute(store), single_writer)
    return where.publish(name or run.name, files, told)
