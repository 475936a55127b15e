"""What Ray Tune runs for a trial: a driver that fine-tunes as a single run does, and reports."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution import class_cache
from ray.tune.integration.ray_train import TuneReportCallback

from effnet_ray import storage
from effnet_ray.data import feature_cache
from effnet_ray.errors import ControllerDiedError, EffnetRayError
from effnet_ray.placement import Placement
from effnet_ray.runtime import signal_handlers
from effnet_ray.runtime.actors import call, start_local_actor
from effnet_ray.storage.temporary import scratch_folder
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.asha import Brackets
from effnet_ray.sweep.scheduled_search import ScheduledSearch
from effnet_ray.sweep.sweep_record import Sweep
from effnet_ray.sweep.trial_log import FAILURE
from effnet_ray.train.finetune import finetune
from effnet_ray.train.ray_trainer import poll_interval

MAX_CRASHES = 2
"""Restarts of a trial's driver after its process died. Chosen, not measured: after three
deaths the trial itself is the likely cause."""
DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""What a trial's driver leases: no CPU, since only its workers compute, and a place on the head
node, which is not a spot machine."""


@dataclass(frozen=True, slots=True)
class TrialDriver:
    """Runs trials; everything a trial's driver needs besides its config."""

    sweep: Sweep
    uri: str
    """The sweep's folder."""
    placements: dict[str, Placement]
    """Variant → where its trials run."""
    concurrent: int
    """Trials that run side by side, at most."""
    mirror: str | None
    controllers: Any
    """Actor handle of `start_controller_registry`."""

    def run(self, config: dict[str, Any]) -> None:
        """Fine-tune one trial. Workers report every epoch; a failure is reported, not raised."""
        number, variant = config["number"], config["variant"]
        # A stopped trial ends as soon as it notices that its controller was killed; Tune waits.
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
        placement = self.placements[variant]
        try:
            with poll_interval(self.concurrent * placement.worker_range[1]):
                finetune(
                    self.sweep.trial_recipe(variant, config["settings"]),
                    placement,
                    self.sweep.data,
                    runs=storage.join(self.uri, sweep_record.RUNS),
                    name=self.sweep.run_name(number, variant),
                    mirror=self.mirror,
                    features_in=storage.join(self.uri.rpartition("/")[0], feature_cache.FOLDER),
                    callbacks=[_ReportToTune(number, self.controllers)],
                )
        except ControllerDiedError:
            raise  # Tune restarts the trial, unless it was stopped
        except EffnetRayError as error:
            tune.report({FAILURE: str(error)})
        finally:
            self.controllers.remove.remote(number)


class ControllerRegistry:
    """Ray Train's controller of each running trial; kills it when the trial is stopped.

    Tune would kill the trial's driver instead, and with it the imports of its process, which cost
    seconds per trial. Drivers are reused, and only the controller of a stopped trial dies.
    """

    def __init__(self) -> None:
        self._controllers: dict[int, Any] = {}

    def add(self, number: int, controller: Any) -> None:
        """Register the actor that controls this trial's workers."""
        self._controllers[number] = controller

    def remove(self, number: int) -> None:
        """Forget a trial whose driver has returned."""
        self._controllers.pop(number, None)

    def stop(self, number: int) -> None:
        """Kill the trial's controller; its workers end with it and give back what they lease."""
        controller = self._controllers.pop(number, None)
        if controller is not None:
            ray.kill(controller)


def start_controller_registry() -> Any:
    """Start the actor that can stop trials. If it dies, Ray starts it again, empty."""
    return start_local_actor(ControllerRegistry, max_restarts=-1)


class _ReportToTune(TuneReportCallback):  # type: ignore[misc]  # Ray Tune has no types
    """Passes the workers' reports on to Tune; registers the controller before each of them."""

    def __init__(self, number: int, controllers: Any) -> None:
        super().__init__()
        self._number, self._controllers = number, controllers

    def after_report(self, *report: Any, **more: Any) -> None:
        """Called in the controller's process for every report of its workers."""
        controller = ray.get_runtime_context().current_actor
        call(self._controllers.add, self._number, controller)
        super().after_report(*report, **more)


def keep_credentials_private() -> None:
    """Keep Ray Tune from copying AWS keys into the runtime environment of its actors.

    Ray lists runtime environments, logs them, and passes them as arguments of processes. Machines
    have credentials of their own, as they do for a single run.
    """
    copied = class_cache.ENV_VARS_TO_PROPAGATE  # ray 2.60
    copied.difference_update([name for name in copied if name.startswith("AWS_")])


def run_trials(
    trial: Callable[[dict[str, Any]], None],
    search: ScheduledSearch,
    brackets: Brackets,
    concurrent: int,
) -> None:
    """Run Ray Tune until `search` has no more trials, `concurrent` of them side by side.

    Tune's own state goes to a temporary folder: a sweep resumes from its own record.
    """
    keep_credentials_private()
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # only the old output can be silenced
    # Tune's handler of Ctrl-C would ignore the first one after the sweep's trials.
    with (
        signal_handlers.restored(signal.SIGINT),
        scratch_folder("ray-tune") as scratch,
    ):
        Tuner(
            tune.with_resources(lambda config: trial(config), DRIVER_RESOURCES),
            tune_config=TuneConfig(
                search_alg=search,
                scheduler=brackets,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                storage_path=str(scratch),
                failure_config=FailureConfig(max_failures=MAX_CRASHES),
                verbose=0,
            ),
        ).fit()
