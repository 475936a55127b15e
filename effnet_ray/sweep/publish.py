"""From a sweep's outcome to releases: the model asked for, and all of the Pareto front."""

from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.publish.from_run import release_run
from effnet_ray.publish.test_score import Scoring
from effnet_ray.release.store import Release
from effnet_ray.sweep import results, sweep_record
from effnet_ray.sweep.results import LeaderboardRow, Outcome
from effnet_ray.train.run_record import Result, load_result


def publish(
    found: Outcome, store: str, *, single_writer: bool = False, scoring: Scoring | None = None
) -> tuple[Release, list[Release]]:
    """Release the best model, and the Pareto front's, as SWEEP-VARIANT; see `release_run`.

    What was released already is found, not released again. Raises ReleaseError.
    """

    def release(entry: LeaderboardRow) -> Release:
        result, name, sweep = _trial(found, entry)
        return release_run(result, store, name=name, found_by=sweep, single_writer=single_writer,
                           scoring=scoring)  # fmt: skip

    front = [release(entry) for entry in found.pareto]
    return release(found.best), front


def _trial(found: Outcome, entry: LeaderboardRow) -> tuple[Result, str, dict[str, Any]]:
    """How a trial ended, what its model is called, and what found it."""
    run_uri = storage.join(found.uri, sweep_record.RUNS, entry.trial.run)
    result = load_result(run_uri)
    if result is None:
        raise ReleaseError(
            f"trial {entry.trial.number} has no result in {run_uri}: restore it, or start the "
            "sweep again under another --name"
        )
    sweep = {
        "sweep": found.uri,
        "trial": entry.trial.number,
        "objective": results.objective_json(found.objective),
        "tried": results.counts(found.trials),
        "device_seconds": round(sum(trial.device_seconds for trial in found.trials), 1),
    }
    return result, f"{found.sweep.name}-{entry.trial.variant}", sweep
