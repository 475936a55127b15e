"""The driver of a sweep: validate, record, let Ray Tune run the trials, choose the best model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import RecipeError, RunExistsError
from effnet_ray.model.profile import Cost
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.recipe_rules import BATCH_SIZE
from effnet_ray.runtime import gpus, nodes, pending, session
from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.sweep import costs, results, space as spaces, sweep_record, sweep_rules
from effnet_ray.sweep.asha import RUNG, Brackets
from effnet_ray.sweep.definition import define
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.resources import Allocation, Hardware, allocate
from effnet_ray.sweep.results import Outcome
from effnet_ray.sweep.scheduled_search import ScheduledSearch
from effnet_ray.sweep.searchers import RANDOM, Sampler, sampler
from effnet_ray.sweep.space import Settings
from effnet_ray.sweep.sweep_record import Sweep, Trial
from effnet_ray.sweep.trial import TrialDriver, run_trials, start_controller_registry
from effnet_ray.sweep.trial_log import SweepProgress, TrialLog
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.train import run_record
from effnet_ray.train.teacher import read_teacher


@dataclass(frozen=True, slots=True)
class SweepStarted:
    """A sweep is about to run its trials."""

    sweep: Sweep
    allocation: Allocation
    finished_before: int
    """Trials that earlier calls ended."""


OnProgress = Callable[[SweepStarted | SweepProgress | WaitingForWorkers], None]


def tune(
    recipe: Recipe,
    placement: Placement,
    data: str,
    *,
    variants: Sequence[str],
    trials: int,
    runs: str,
    space: Mapping[str, Any] | None = None,
    fixed: Collection[str] = (),
    searcher: str = RANDOM,
    budget: float | None = None,
    objective: Objective | None = None,
    workers: str | None = None,
    name: str | None = None,
    mirror: str | None = None,
    on_progress: OnProgress | None = None,
    connect: Callable[[Placement], object] | None = None,
) -> Outcome:
    """Find the best model among `trials` recipes; continue an unfinished sweep.

    A trial is `recipe` with one of `variants` and a sample of `space`, by default `space.default`
    without the fields in `fixed`; batch size and rates follow the number of train images as those
    of a run on one GPU do. `budget` is in device-seconds. `workers` is the number of workers of
    every trial, by default as many as keep all devices busy. The others are as in `finetune`.
    Raises InputError before anything is leased, TrainingError when no trial finishes.
    """
    data, runs = storage.absolute(data), storage.absolute(runs)
    checked = spaces.default(recipe, fixed) if space is None else space
    sweep_rules.check(recipe, variants, checked, trials=trials, searcher=searcher, budget=budget)
    manifest = _load_trainable(recipe, data)
    recipe = sweep_record.with_common_family(recipe, variants)
    sweep = define(
        recipe, space, manifest, fixed=fixed, data=data, variants=variants, trials=trials,
        searcher=searcher, budget=budget, name=name,
    )  # fmt: skip
    uri = storage.join(runs, sweep.name)
    sweep = sweep_record.as_recorded(sweep, uri, recipe, space)
    connect = connect or _join_or_start
    placement = gpus.with_default_gpus(replace(placement, workers="1"), connect)
    search = _Search(sweep, uri, manifest, placement, objective or Objective())
    if sweep_record.has_outcome(uri):
        sweep_record.create(sweep, uri)  # refuses another sweep of this name
        return search.outcome(search.past, 0)
    if recipe.teacher:
        read_teacher(recipe.teacher, manifest.classes, recipe.task or manifest.task)
    connect(placement)
    return _run(search, workers, [data, runs], mirror, on_progress or _ignore)


def _load_trainable(recipe: Recipe, data: str) -> Manifest:
    """The manifest of a data set that a sweep can train on. Raises InputError."""
    manifest = manifests.load(data)
    manifests.check_trainable(manifest.limited(recipe.limit), data)
    sweep_rules.check_task(recipe, manifest)
    return manifest


def _run(
    search: "_Search",
    workers: str | None,
    uris: Sequence[str],
    mirror: str | None,
    on_progress: OnProgress,
) -> Outcome:
    """Run the trials that are not over, on the cluster that this process has joined."""
    allocation = search.allocate(workers, uris)
    sweep_record.create(search.sweep, search.uri)
    finished = sum(trial.over for trial in search.past.values())
    on_progress(SweepStarted(search.sweep, allocation, finished))
    log = search.run(allocation, mirror, on_progress)
    outcome = search.outcome(log.trials, log.spent)
    search.delete_checkpoints(log.trials)
    sweep_record.write_outcome(outcome.as_json(), search.uri)
    return outcome


def _join_or_start(placement: Placement) -> object:
    return session.connect(placement, local=False, verbose=False, dashboard=True)


def _ignore(event: object) -> None:
    """Default callback: do nothing."""


class _Search:
    """A sweep's search, from its recorded trials to its outcome."""

    def __init__(
        self,
        sweep: Sweep,
        uri: str,
        manifest: Manifest,
        placement: Placement,
        objective: Objective,
    ) -> None:
        """Raises RecipeError if the budget is too small for one trial to reach a rung."""
        self.sweep, self.uri = sweep, uri
        self._manifest, self._placement, self._objective = manifest, placement, objective
        self.past = sweep_record.load_trials(uri)
        self._sampler = sampler(sweep.searcher, spaces.parse(sweep.space), sweep.recipe.seed)
        self._schedule = self._new_schedule()

    def _new_schedule(self) -> VariantSchedule:
        return _schedule(self.sweep, self._manifest, self._sampler, self.past)

    def allocate(self, workers: str | None, uris: Sequence[str]) -> Allocation:
        """What each trial leases.

        Raises InputError if the cluster can never provide it, or no model fits the objective.
        """
        accelerators = self._placement.accelerators
        hardware = Hardware(
            gpus=nodes.max_resource("GPU", accelerators),
            cpus=nodes.max_resource("CPU", accelerators),
        )
        batch_size = self.sweep.recipe.batch_size or BATCH_SIZE
        allocation = allocate(
            self._placement, workers, self._schedule.rounds, batch_size, hardware
        )
        for placement in allocation.placements.values():
            session.request_resources(placement, uris)
        self._objective.check(self._costs({}))
        return allocation

    def run(self, allocation: Allocation, mirror: str | None, on_progress: OnProgress) -> TrialLog:
        """Run the schedule's trials. Raises KeyboardInterrupt after Ctrl-C."""
        _check_same_plan(self._new_schedule(), self.past)
        schedule, folder = self._schedule, storage.join(self.uri, sweep_record.RUNS)
        controllers = start_controller_registry()
        brackets = Brackets(
            lambda: schedule.budget is not None and schedule.spent >= schedule.budget,
            controllers.stop.remote,
        )
        log = TrialLog(
            self.sweep,
            self.uri,
            schedule,
            brackets,
            self.past,
            on_progress=on_progress,
            observe=self._sampler.observe,
            result=lambda name: run_record.load_result(storage.join(folder, name)),
        )
        driver = TrialDriver(
            self.sweep,
            self.uri,
            allocation.placements,
            allocation.concurrent,
            mirror,
            controllers,
        )
        with pending.report_waiting_trials(on_progress):
            run_trials(driver.run, ScheduledSearch(schedule, log), brackets, allocation.concurrent)
        if not schedule.done:
            raise KeyboardInterrupt  # Ray Tune handled Ctrl-C: it ended the trials and returned
        return log

    def outcome(self, trials: Mapping[int, Trial], trained_seconds: float) -> Outcome:
        """The sweep's outcome. Raises TrainingError if there is no model to choose."""
        ended = trials.values()
        by_trial = costs.costs_by_trial(self.sweep, ended, self._costs(trials))
        eval_images = self._manifest.limited(self.sweep.recipe.limit).images["eval"]
        return results.summarize(
            self.sweep, self.uri, ended, by_trial, self._objective, trained_seconds, eval_images
        )

    def delete_checkpoints(self, trials: Mapping[int, Trial]) -> None:
        """Delete the checkpoints of trials that did not finish."""
        for trial in trials.values():
            if trial.state in (sweep_record.STOPPED, sweep_record.FAILED):
                run = storage.join(self.uri, sweep_record.RUNS, trial.run)
                storage.delete(storage.join(run, run_record.CHECKPOINTS))

    def _costs(self, trials: Mapping[int, Trial]) -> dict[costs.CostKey, Cost]:
        """The costs of all variants' models, and of these trials'."""
        tried = [(trial.variant, trial.settings) for trial in trials.values()]
        plain: list[tuple[str, Settings]] = [(variant, {}) for variant in self.sweep.variants]
        keys = {
            costs.cost_key(self.sweep, variant, settings) for variant, settings in [*plain, *tried]
        }
        classes = len(self._manifest.classes)
        return costs.model_costs(self.sweep, self.uri, classes, self._placement, keys)


def _check_same_plan(schedule: VariantSchedule, past: Mapping[int, Trial]) -> None:
    """Raises RunExistsError if recorded trials are not those that the schedule plans."""
    while (planned := schedule.next()) and planned.number in past:
        trial = past[planned.number]
        if trial.variant != planned.variant:
            raise RunExistsError(
                f"trial {trial.number} of this sweep was recorded for {trial.variant}, but this "
                f"version of effnet_ray plans it for {planned.variant}: continue it with the "
                "version that started it, or choose another --name"
            )
        if trial.curve:
            schedule.record_progress(
                trial.number,
                top1=trial.eval_top1,
                progress=trial.progress,
                spent=trial.device_seconds,
            )
        if trial.over:
            schedule.record_end(trial.number)


def _schedule(
    sweep: Sweep, manifest: Manifest, sample: Sampler, past: Mapping[int, Trial]
) -> VariantSchedule:
    """The sweep's schedule. Raises RecipeError if no trial can reach a rung within the budget."""
    estimates = {
        variant: costs.estimated_device_seconds(sweep.trial_recipe(variant, {}), manifest)
        for variant in sweep.variants
    }
    cheapest = min(estimates, key=lambda variant: estimates[variant])
    rung = RUNG * estimates[cheapest]
    if sweep.budget is not None and sweep.budget < rung:
        raise RecipeError(
            f"a budget of {sweep.budget:,g} device-seconds is too small: a trial of {cheapest} "
            f"needs about {costs.two_digits(rung)} to reach ASHA's rung (estimated from "
            "timm's speed on an RTX 3090): raise --budget, or lower --epochs or --image-size"
        )
    return VariantSchedule(
        estimates,
        sweep.trials,
        lambda number: past[number].settings if number in past else sample(number),
        sweep.budget,
        earlier={number: trial.state != sweep_record.SKIPPED for number, trial in past.items()},
    )
