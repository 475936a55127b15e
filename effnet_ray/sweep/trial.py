"""What Ray Tune runs for a trial: a driver that fine-tunes as every other does, and reports."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.integration.ray_train import TuneReportCallback

from effnet_ray import storage
from effnet_ray.data import feature_cache
from effnet_ray.errors import ControllerDiedError, EffnetRayError
from effnet_ray.placement import Placement
from effnet_ray.runtime.events import start_local_actor
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.asha import Brackets, ScheduledSearch
from effnet_ray.sweep.sweep_record import Sweep
from effnet_ray.sweep.trial_log import FAILURE
from effnet_ray.train.finetune import finetune, poll_interval

CRASHES = 2
"""Times that a trial's driver is started again when its process dies."""
WAITING = {"node:__internal_head__": 0.001}
"""What a trial's driver holds: no CPU, since only its workers compute, and a place on the head
node, which no spot market takes away."""


@dataclass(frozen=True, slots=True)
class TrialDriver:
    """All that a trial's driver is told beside its settings."""

    sweep: Sweep
    uri: str
    """The sweep's folder."""
    placements: dict[str, Placement]
    """Variant → where its trials run."""
    together: int
    """Trials that run side by side, at most."""
    mirror: str | None
    leaders: Any
    """Actor handle of `leaders`."""

    def run(self, config: dict[str, Any]) -> None:
        """Fine-tune. The workers report every epoch; what cannot go on says why, and ends."""
        number, variant = config["number"], config["variant"]
        # Stopped, it ends as soon as it hears that its leader was killed; Tune waits for that.
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
        placement = self.placements[variant]
        try:
            with poll_interval(self.together * placement.worker_range[1]):
                finetune(
                    self.sweep.trial_recipe(variant, config["settings"]),
                    placement,
                    self.sweep.data,
                    runs=storage.join(self.uri, sweep_record.RUNS),
                    name=f"{self.sweep.name}-{number:03d}-{variant}",
                    mirror=self.mirror,
                    features_in=storage.join(self.uri.rpartition("/")[0], feature_cache.FOLDER),
                    callbacks=[_Reports(number, self.leaders)],
                )
        except ControllerDiedError:
            raise  # Tune begins it again, if it was no stopped trial
        except EffnetRayError as error:
            tune.report({FAILURE: str(error)})
        finally:
            self.leaders.left.remote(number)


class ControllerRegistry:
    """Knows the process that leads each trial's workers, and ends it when the trial is stopped.

    Tune would end the trial's driver for that, and with it what has been imported: seconds, for
    every trial. So drivers are used again, and of a stopped trial only the leader dies.
    """

    def __init__(self) -> None:
        self._of: dict[int, Any] = {}

    def leads(self, number: int, leader: Any) -> None:
        """The actor that leads this trial's workers."""
        self._of[number] = leader

    def left(self, number: int) -> None:
        """The trial's driver has come back."""
        self._of.pop(number, None)

    def stop(self, number: int) -> None:
        """Kill the trial's leader; its workers and what they lease go with it."""
        leader = self._of.pop(number, None)
        if leader is not None:
            ray.kill(leader)


def start_controller_registry() -> Any:
    """Start the actor that can stop trials."""
    return start_local_actor(ControllerRegistry)


class _Reports(TuneReportCallback):  # type: ignore[misc]  # Ray Tune has no types
    """Passes the workers' reports on to Tune, and tells first which process it is in."""

    def __init__(self, number: int, leaders: Any) -> None:
        super().__init__()
        self._number, self._leaders, self._told = number, leaders, False

    def after_report(self, *report: Any, **more: Any) -> None:
        """Called by the leader, for every report of its workers."""
        if not self._told:
            leader = ray.get_runtime_context().current_actor
            ray.get(self._leaders.leads.remote(self._number, leader))
            self._told = True
        super().after_report(*report, **more)


def run_trials(
    trial: Callable[[dict[str, Any]], None],
    search: ScheduledSearch,
    brackets: Brackets,
    concurrent: int,
) -> None:
    """Run Ray Tune until `search` has no more trials, `concurrent` of them side by side.

    Its own state goes to a folder that is thrown away: a sweep resumes from its own record.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old one can be silent
    with tempfile.TemporaryDirectory(prefix="effnet-ray-tune-") as scratch:
        Tuner(
            tune.with_resources(lambda config: trial(config), WAITING),
            tune_config=TuneConfig(
                search_alg=search,
                scheduler=brackets,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=CRASHES),
                verbose=0,
            ),
        ).fit()
