"""The driver of a sweep: refuse early, record what is tried, let Ray Tune run the trials."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune as ray_tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import RecipeError, TrainingError
from effnet_ray.model.cost import Cost
from effnet_ray.recipe import Placement, Recipe
from effnet_ray.sweep import costs, outcome, record, space as spaces
from effnet_ray.sweep.book import Book, Told
from effnet_ray.sweep.ladder import Ladder
from effnet_ray.sweep.outcome import Entry, Objective
from effnet_ray.sweep.record import Sweep, Trial
from effnet_ray.sweep.resources import Hardware, Shares, share_out
from effnet_ray.sweep.schedule import FIRST_RUNG, Brackets, LadderSearch
from effnet_ray.sweep.searchers import RANDOM, Draws, draws
from effnet_ray.sweep.space import Settings
from effnet_ray.sweep.trial import Driver
from effnet_ray.train import record as runs_record, session
from effnet_ray.train.finetune import checked_name
from effnet_ray.variants import VARIANTS

CRASHES = 2
"""Times that a trial's driver is started again when its process dies."""
WAITING = {"node:__internal_head__": 0.001}
"""What a trial's driver holds: no CPU, since only its workers compute, and a place on the head
node, which no spot market takes away."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to be tried, and where."""

    sweep: Sweep
    shares: Shares
    recorded: int
    """Trials that an earlier call ended."""
    foreseen: float
    """Device-seconds if no trial is stopped early, by timm's figures for an RTX 3090."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep found."""

    sweep: Sweep
    uri: str
    trials: tuple[Trial, ...]
    board: list[Entry]
    """Finished trials, the best first."""
    pareto: list[Entry]
    """The cheapest to use first."""
    best: Entry
    """What the objective asks for."""
    objective: Objective
    trained_seconds: float
    """Device-seconds of this call."""


Hear = Callable[[Plan | Told], None]


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
    hear: Hear = lambda told: None,
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
    manifests.check(manifest.limited(recipe.limit), data)
    sweep = _sweep(recipe, variants, trials, space, searcher, budget, data, manifest, name)
    uri = storage.join(runs, sweep.name)
    drawn = draws(searcher, spaces.parse(space), recipe.seed)
    past = record.trials(uri)
    ladder = _ladder(sweep, manifest, drawn, past)
    if record.outcome(uri):
        record.begin(sweep, uri)  # refuses another sweep of this name
        return _outcome(sweep, uri, past, objective, _costs(sweep, uri, manifest, placement), 0)
    connect(placement)
    shares = share_out(placement, workers, ladder.waves, recipe.batch_size, _hardware())
    for chosen in shares.placements.values():
        session.lease(chosen, [data, runs])
    objective.check(_costs(sweep, uri, manifest, placement))
    record.begin(sweep, uri)
    over = sum(trial.over for trial in past.values())
    hear(Plan(sweep, shares, over, ladder.to_come))
    book = _run(Driver(sweep, uri, shares.placements, mirror), shares, ladder, drawn, past, hear)
    known = _costs(sweep, uri, manifest, placement, book.trials)
    found = _outcome(sweep, uri, book.trials, objective, known, book.spent)
    record.write_outcome(summary(found), uri)
    return found


def summary(found: Outcome) -> dict[str, Any]:
    """What the job prints, but for the release."""
    return {
        "sweep": found.sweep.name,
        "best": found.best.as_json(),
        "pareto": [entry.as_json() for entry in found.pareto],
        "trials": len(found.trials),
        "states": outcome.counts(found.trials),
        "trained_seconds": found.trained_seconds,
        "saved_seconds": outcome.saved(found.trials),
    }


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
    if not variants or len(set(variants)) < len(variants):
        raise RecipeError(
            f"variants are {', '.join(variants) or 'none'}: expected some of "
            f"{', '.join(VARIANTS)}, each once"
        )
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


def _ladder(sweep: Sweep, manifest: Manifest, drawn: Draws, past: Mapping[int, Trial]) -> Ladder:
    """Raises RecipeError where the budget does not carry one trial to its first rung."""
    full = {
        variant: costs.device_seconds(sweep.trial_recipe(variant, {}), manifest)
        for variant in sweep.variants
    }
    cheapest = min(full, key=lambda variant: full[variant])
    rung = FIRST_RUNG * full[cheapest]
    if sweep.budget is not None and sweep.budget < rung:
        raise RecipeError(
            f"a budget of {sweep.budget:,.0f} device-seconds is too small: one trial of "
            f"{cheapest} takes {rung:,.0f} to its first rung, by timm's figures for an RTX 3090: "
            "raise --budget, or lower --epochs or --image-size"
        )
    return Ladder(
        full,
        sweep.trials,
        lambda number: past[number].settings if number in past else drawn(number),
        sweep.budget,
        begun={number: trial.state != record.SKIPPED for number, trial in past.items()},
    )


def _hardware() -> Hardware:
    return Hardware(gpus=session.capacity("GPU")[1], cpus=session.capacity("CPU")[1])


def _costs(
    sweep: Sweep,
    uri: str,
    manifest: Manifest,
    placement: Placement,
    trials: Mapping[int, Trial] | None = None,
) -> dict[costs.Key, Cost]:
    """What the models of all variants, or of these trials, cost to use."""
    tried = [(trial.variant, trial.settings) for trial in (trials or {}).values()]
    plain: list[tuple[str, Settings]] = [(variant, {}) for variant in sweep.variants]
    keys = {costs.key(sweep, variant, settings) for variant, settings in [*plain, *tried]}
    return costs.measured(sweep, uri, len(manifest.classes), placement, keys)


def _run(
    driver: Driver,
    shares: Shares,
    ladder: Ladder,
    drawn: Draws,
    past: Mapping[int, Trial],
    hear: Hear,
) -> Book:
    """Run Ray Tune. Its own state goes to a folder that is thrown away: we resume from ours."""
    brackets = Brackets(lambda: ladder.budget is not None and ladder.spent >= ladder.budget)
    folder = storage.join(driver.uri, record.RUNS)
    book = Book(
        driver.sweep,
        driver.uri,
        ladder,
        brackets,
        past,
        hear=hear,
        learn=drawn.learns,
        result=lambda name: runs_record.load_result(storage.join(folder, name)),
    )
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old one can be silent
    with tempfile.TemporaryDirectory(prefix="effnet-ray-tune-") as scratch:
        Tuner(
            ray_tune.with_resources(lambda config: driver.run(config), WAITING),
            tune_config=TuneConfig(
                search_alg=LadderSearch(ladder, book),
                scheduler=brackets,
                num_samples=-1,
                max_concurrent_trials=shares.concurrent,
                # A stopped trial's process must go at once, and its workers with it.
                reuse_actors=False,
            ),
            run_config=RunConfig(
                name=driver.sweep.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=CRASHES),
                verbose=0,
            ),
        ).fit()
    if not ladder.done:
        raise KeyboardInterrupt  # Ray Tune has heard Ctrl-C, ended the trials and come back
    return book


def _outcome(
    sweep: Sweep,
    uri: str,
    trials: Mapping[int, Trial],
    objective: Objective,
    known: Mapping[costs.Key, Cost],
    trained_seconds: float,
) -> Outcome:
    """Raises TrainingError where no trial finished, or none stays within the limits."""
    tried = tuple(trial for _, trial in sorted(trials.items()))
    board = outcome.leaderboard(tried, costs.by_number(sweep, tried, known))
    best = outcome.choose(board, objective)
    if best is None:
        raise TrainingError(f"sweep {sweep.name!r} found no model: {_why_none(tried, len(board))}")
    return Outcome(
        sweep=sweep,
        uri=uri,
        trials=tried,
        board=board,
        pareto=outcome.pareto(board),
        best=best,
        objective=objective,
        trained_seconds=trained_seconds,
    )


def _why_none(tried: Sequence[Trial], finished: int) -> str:
    if finished:
        return f"{finished} trials finished, none within the limits: raise the objective's limits"
    failed = [trial for trial in tried if trial.state == record.FAILED]
    if failed:
        first = failed[0]
        return f"{len(failed)} trials failed, the first, {first.run}, because: {first.reason}"
    states = ", ".join(f"{n} {state}" for state, n in outcome.counts(tried).items())
    return f"no trial came to its end ({states}): raise --budget under another --name"
