"""The driver of a sweep: refuse early, record what is tried, let Ray Tune run the trials."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import RecipeError
from effnet_ray.model.profile import Cost
from effnet_ray.placement import Placement
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.runtime import nodes, pending, session
from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.sweep import costs, results, space as spaces, sweep_record
from effnet_ray.sweep.asha import FIRST_RUNG, Brackets, ScheduledSearch
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.resources import Hardware, Shares, share_out
from effnet_ray.sweep.results import Outcome
from effnet_ray.sweep.searchers import RANDOM, Sampler, sampler
from effnet_ray.sweep.space import Settings
from effnet_ray.sweep.sweep_record import Sweep, Trial
from effnet_ray.sweep.trial import TrialDriver, run_trials, start_controller_registry
from effnet_ray.sweep.trial_log import SweepProgress, TrialLog
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.tasks import MULTILABEL
from effnet_ray.train import run_record as runs_record
from effnet_ray.train.finetune import checked_name
from effnet_ray.variants import VARIANTS


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to be tried, and where."""

    sweep: Sweep
    shares: Shares
    recorded: int
    """Trials that an earlier call ended."""
    foreseen: float
    """Device-seconds if no trial is stopped early, by timm's figures for an RTX 3090."""


OnProgress = Callable[[Plan | SweepProgress | WaitingForWorkers], None]


def tune(
    recipe: Recipe,
    placement: Placement,
    data: str,
    *,
    variants: Sequence[str],
    trials: int,
    runs: str,
    space: Mapping[str, Any] = spaces.DEFAULT,
    searcher: str = RANDOM,
    budget: float | None = None,
    objective: Objective = Objective(),  # noqa: B008  # frozen
    workers: str | None = None,
    name: str | None = None,
    mirror: str | None = None,
    on_progress: OnProgress = lambda told: None,
    connect: Callable[[Placement], object] = lambda p: session.connect(
        p, local=False, verbose=False, dashboard=True
    ),
) -> Outcome:
    """Find the best model among `trials` recipes; continue an unfinished sweep.

    A trial is `recipe` with one of `variants` and a draw from `space`. `budget` is in
    device-seconds; `workers` are each trial's, by default as many as keep all devices busy; the
    other parameters are those of `finetune`.
    Raises InputError before anything is leased, TrainingError when no trial comes to its end.
    """
    data, runs = storage.absolute(data), storage.absolute(runs)
    manifest = manifests.load(data)
    manifests.check_trainable(manifest.limited(recipe.limit), data)
    sweep = _sweep(recipe, variants, trials, space, searcher, budget, data, manifest, name)
    search = _Search(sweep, storage.join(runs, sweep.name), manifest, placement, objective)
    if sweep_record.outcome(search.uri):
        sweep_record.begin(sweep, search.uri)  # refuses another sweep of this name
        return search.outcome(search.past, 0)
    connect(placement)
    shares = search.shares(workers, [data, runs])
    sweep_record.begin(sweep, search.uri)
    over = sum(trial.over for trial in search.past.values())
    on_progress(Plan(sweep, shares, over, search.ladder.to_come))
    book = search.run(shares, mirror, on_progress)
    found = search.outcome(book.trials, book.spent)
    search.clear(book.trials)
    sweep_record.write_outcome(found.as_json(), search.uri)
    return found


def _check(
    recipe: Recipe, variants: Sequence[str], space: Mapping[str, Any], manifest: Manifest
) -> None:
    """Raises RecipeError for what a sweep cannot be of."""
    if not variants or len(set(variants)) < len(variants):
        raise RecipeError(
            f"variants are {', '.join(variants) or 'none'}: expected some of "
            f"{', '.join(VARIANTS)}, each once"
        )
    if recipe.patience or "patience" in space:
        raise RecipeError(
            "patience is for single runs: a sweep stops trials by ASHA; leave it out"
        )
    if recipe.eval_every > 1 or "eval_every" in space:
        raise RecipeError(
            "eval_every is for single runs: a sweep judges trials by every epoch; leave it out"
        )
    if MULTILABEL in (recipe.task, manifest.task):
        raise RecipeError(
            "task is multilabel: a sweep judges trials by top-1, which is for images of one "
            "class; fine-tune single runs"
        )
    if SYNC in (recipe.batchnorm, *str(space.get("batchnorm", "")).replace(":", ",").split(",")):
        raise RecipeError(
            "batchnorm is sync: trials of a sweep have as many workers as there is room for; "
            "choose train or frozen"
        )


def _sweep(
    recipe: Recipe,
    variants: Sequence[str],
    trials: int,
    space: Mapping[str, Any],
    searcher: str,
    budget: float | None,
    data: str,
    manifest: Manifest,
    name: str | None,
) -> Sweep:
    """The sweep, checked as far as it can be without a cluster."""
    _check(recipe, variants, space, manifest)
    spaces.parse(space).check(recipe, variants)
    content: dict[str, Any] = {
        "recipe": asdict(recipe),
        "variants": list(variants),
        "trials": trials,
        "space": dict(space),
        "searcher": searcher,
        "budget": budget,
        "fingerprint": manifest.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Sweep(
        name=checked_name(name or f"sweep-{digest[:8]}"),
        recipe=recipe,
        variants=tuple(variants),
        trials=trials,
        space=dict(space),
        searcher=searcher,
        budget=budget,
        data=data,
        fingerprint=manifest.fingerprint,
    )


class _Search:
    """A sweep on its way from what is recorded to its outcome."""

    def __init__(
        self,
        sweep: Sweep,
        uri: str,
        manifest: Manifest,
        placement: Placement,
        objective: Objective,
    ) -> None:
        """Raises RecipeError where the budget does not carry one trial to its first rung."""
        self.sweep, self.uri = sweep, uri
        self._manifest, self._placement, self._objective = manifest, placement, objective
        self.past = sweep_record.trials(uri)
        self._draws = sampler(sweep.searcher, spaces.parse(sweep.space), sweep.recipe.seed)
        self.ladder = _ladder(sweep, manifest, self._draws, self.past)

    def shares(self, workers: str | None, uris: Sequence[str]) -> Shares:
        """What each trial leases. Raises InputError where this cluster can never give it, or no
        model could be chosen."""
        wanted = self._placement.accelerators
        hardware = Hardware(
            gpus=nodes.max_resource("GPU", wanted), cpus=nodes.max_resource("CPU", wanted)
        )
        batch_size = self.sweep.recipe.batch_size
        found = share_out(self._placement, workers, self.ladder.waves, batch_size, hardware)
        for chosen in found.placements.values():
            session.request_resources(chosen, uris)
        self._objective.check(self._costs({}))
        return found

    def run(self, shares: Shares, mirror: str | None, on_progress: OnProgress) -> TrialLog:
        """Train all that the ladder hands out. Raises KeyboardInterrupt after Ctrl-C."""
        ladder, folder = self.ladder, storage.join(self.uri, sweep_record.RUNS)
        leads = start_controller_registry()
        brackets = Brackets(
            lambda: ladder.budget is not None and ladder.spent >= ladder.budget,
            leads.stop.remote,
        )
        book = TrialLog(
            self.sweep,
            self.uri,
            ladder,
            brackets,
            self.past,
            on_progress=on_progress,
            learn=self._draws.learns,
            result=lambda name: runs_record.load_result(storage.join(folder, name)),
        )
        driver = TrialDriver(
            self.sweep, self.uri, shares.placements, shares.concurrent, mirror, leads
        )
        with pending.report_waiting_trials(on_progress):
            run_trials(driver.run, ScheduledSearch(ladder, book), brackets, shares.concurrent)
        if not ladder.done:
            raise KeyboardInterrupt  # Ray Tune has heard Ctrl-C, ended the trials and come back
        return book

    def outcome(self, trials: Mapping[int, Trial], trained_seconds: float) -> Outcome:
        """Raises TrainingError where there is no model to choose."""
        tried = trials.values()
        known = costs.by_number(self.sweep, tried, self._costs(trials))
        return results.summarize(
            self.sweep, self.uri, tried, known, self._objective, trained_seconds
        )

    def clear(self, trials: Mapping[int, Trial]) -> None:
        """Delete the checkpoints of trials that did not finish: nobody goes on from them."""
        for trial in trials.values():
            if trial.state in (sweep_record.STOPPED, sweep_record.FAILED):
                run = storage.join(self.uri, sweep_record.RUNS, trial.run)
                storage.delete(storage.join(run, runs_record.CHECKPOINTS))

    def _costs(self, trials: Mapping[int, Trial]) -> dict[costs.Key, Cost]:
        """What the models of all variants, and of these trials, cost to use."""
        tried = [(trial.variant, trial.settings) for trial in trials.values()]
        plain: list[tuple[str, Settings]] = [(variant, {}) for variant in self.sweep.variants]
        keys = {costs.key(self.sweep, variant, settings) for variant, settings in [*plain, *tried]}
        classes = len(self._manifest.classes)
        return costs.measured(self.sweep, self.uri, classes, self._placement, keys)


def _ladder(
    sweep: Sweep, manifest: Manifest, drawn: Sampler, past: Mapping[int, Trial]
) -> VariantSchedule:
    """Raises RecipeError where the budget does not carry one trial to its first rung."""
    full = {
        variant: costs.device_seconds(sweep.trial_recipe(variant, {}), manifest)
        for variant in sweep.variants
    }
    cheapest = min(full, key=lambda variant: full[variant])
    rung = FIRST_RUNG * full[cheapest]
    if sweep.budget is not None and sweep.budget < rung:
        raise RecipeError(
            f"a budget of {sweep.budget:,g} device-seconds is too small: one trial of "
            f"{cheapest} takes {rung:,.1f} to its first rung, by timm's figures for an RTX 3090: "
            "raise --budget, or lower --epochs or --image-size"
        )
    return VariantSchedule(
        full,
        sweep.trials,
        lambda number: past[number].settings if number in past else drawn(number),
        sweep.budget,
        begun={number: trial.state != sweep_record.SKIPPED for number, trial in past.items()},
    )
