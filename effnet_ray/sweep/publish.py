"""From a sweep's outcome to releases: the model asked for, and all of the Pareto front."""

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.store.release_run import release_run
from effnet_ray.store.releases import Release
from effnet_ray.sweep import outcome, record
from effnet_ray.sweep.outcome import Entry, Outcome
from effnet_ray.train.record import load_result


def publish(
    found: Outcome, store: str, *, single_writer: bool = False
) -> tuple[Release, list[Release]]:
    """Release the best model, and the Pareto front's, as SWEEP-VARIANT.

    What was released already is found, not released again. Raises ReleaseError.
    """
    front = [_release(found, entry, store, single_writer) for entry in found.pareto]
    return _release(found, found.best, store, single_writer), front


def _release(found: Outcome, entry: Entry, store: str, single_writer: bool) -> Release:
    run_uri = storage.join(found.uri, record.RUNS, entry.trial.run)
    result = load_result(run_uri)
    if result is None:
        raise ReleaseError(
            f"trial {entry.trial.number} has no result in {run_uri}: restore it, or start the "
            "sweep again under another --name"
        )
    sweep = {
        "sweep": found.uri,
        "trial": entry.trial.number,
        "objective": outcome.objective_json(found.objective),
        "tried": outcome.counts(found.trials),
        "device_seconds": round(sum(trial.device_seconds for trial in found.trials), 1),
    }
    name = f"{found.sweep.name}-{entry.trial.variant}"
    return release_run(result, store, name=name, found_by=sweep, single_writer=single_writer)
