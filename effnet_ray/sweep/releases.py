"""From a sweep's outcome to releases: the best model and the Pareto front."""

from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.publish.from_run import release_run
from effnet_ray.publish.options import ReleaseOptions
from effnet_ray.publish.test_score import Scoring
from effnet_ray.release.names import Release
from effnet_ray.release.store import ModelStore
from effnet_ray.sweep import results, sweep_record
from effnet_ray.sweep.results import LeaderboardRow, Outcome
from effnet_ray.train.run_record import Result, load_result


def release_models(
    outcome: Outcome,
    store: ModelStore,
    *,
    scoring: Scoring | None = None,
    options: ReleaseOptions = ReleaseOptions(),  # noqa: B008  # frozen
) -> tuple[Release, list[Release]]:
    """Release the best model and the Pareto front's models, named SWEEP-VARIANT.

    Models that were released before are not released again. Other parameters are those of
    `release_run`. Raises ReleaseError.
    """

    def release(row: LeaderboardRow) -> Release:
        return release_run(
            _result(outcome, row),
            store,
            name=f"{outcome.sweep.name}-{row.trial.variant}",
            found_by=_provenance(outcome, row),
            scoring=scoring,
            options=options,
        )

    front = [release(row) for row in outcome.pareto]
    return release(outcome.best), front


def _result(outcome: Outcome, row: LeaderboardRow) -> Result:
    """The result of a trial's run. Raises ReleaseError if it is missing."""
    run_uri = storage.join(outcome.uri, sweep_record.RUNS, row.trial.run)
    result = load_result(run_uri)
    if result is None:
        raise ReleaseError(
            f"trial {row.trial.number} has no result in {run_uri}: restore that folder from a "
            "backup, or start the sweep again under another --name"
        )
    return result


def _provenance(outcome: Outcome, row: LeaderboardRow) -> dict[str, Any]:
    """What a release records about the sweep it comes from."""
    return {
        "sweep": outcome.uri,
        "trial": row.trial.number,
        "objective": results.objective_json(outcome.objective),
        "tried": results.counts(outcome.trials),
        "device_seconds": round(sum(trial.device_seconds for trial in outcome.trials), 1),
    }
