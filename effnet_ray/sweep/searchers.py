"""Samplers for the cheapest variants' settings: random, or Optuna's TPE through Ray Tune."""

import statistics
from collections import defaultdict
from random import Random
from typing import Any, Protocol

from ray import tune

from effnet_ray.errors import RecipeError
from effnet_ray.sweep.asha import MODE, TOP1
from effnet_ray.sweep.space import Domain, Settings, Space
from effnet_ray.sweep.sweep_record import Trial

RANDOM, TPE = "random", "tpe"


class Sampler(Protocol):
    """Samples settings for trials."""

    def __call__(self, number: int) -> Settings:
        """Settings for the trial of this number."""

    def observe(self, trial: Trial) -> None:
        """Take an ended trial into account."""


def check_searcher(searcher: str) -> None:
    """Raises RecipeError for an unknown name."""
    if searcher not in (RANDOM, TPE):
        raise RecipeError(f"searcher {searcher!r} is unknown: choose random or tpe")


def sampler(searcher: str, space: Space, seed: int) -> Sampler:
    """The sampler of that name, random or tpe.

    Raises RecipeError for an unknown name, and for tpe where Optuna is not installed.
    """
    check_searcher(searcher)
    if searcher == RANDOM:
        return RandomSampler(space, seed)
    try:
        return TpeSampler(space, seed)
    except ImportError as error:
        raise RecipeError(
            "--searcher tpe needs Optuna: pip install 'effnet-ray[tpe]', or choose random"
        ) from error


class RandomSampler:
    """Random search. A trial's settings depend on the seed and its number alone."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def __call__(self, number: int) -> Settings:
        """Settings for the trial of this number."""
        return self._space.draw(Random(f"{self._seed} {number}"))

    def observe(self, trial: Trial) -> None:
        """Do nothing: random search does not learn."""


class TpeSampler:
    """Optuna's tree-structured Parzen estimator, through Ray Tune's integration."""

    def __init__(self, space: Space, seed: int) -> None:
        """Raises ImportError where Optuna is not installed."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        domains = {name: _tune_domain(domain) for name, domain in space.domains.items()}
        distributions = OptunaSearch.convert_search_space(domains)
        self._search = OptunaSearch(space=distributions, metric=TOP1, mode=MODE, seed=seed)
        self._suggested: set[int] = set()
        self._top1 = defaultdict[str, list[float]](list)
        """Variant → top-1 of its ended trials."""

    def __call__(self, number: int) -> Settings:
        """Settings for the trial of this number, given all trials observed so far."""
        self._suggested.add(number)
        return dict(self._search.suggest(str(number)))

    def observe(self, trial: Trial) -> None:
        """Learn from a trial suggested here, or from one of an earlier call.

        Variants share the sampling, so what counts is how far a trial is above its variant's mean.
        """
        if trial.curve:
            self._top1[trial.variant].append(trial.eval_top1)
        above = trial.eval_top1 - statistics.mean(self._top1[trial.variant] or [0.0])
        if trial.number in self._suggested:
            report = {TOP1: above} if trial.curve else None
            self._search.on_trial_complete(str(trial.number), report, error=report is None)
        elif trial.curve:
            self._search.add_evaluated_point(trial.settings, above)


def _tune_domain(domain: Domain) -> Any:
    """The domain as an object of Ray Tune."""
    match domain.kind:
        case "choice":
            return tune.choice(list(domain.choices))
        case "int":
            return tune.randint(int(domain.low), int(domain.high) + 1)
        case "log":
            return tune.loguniform(domain.low, domain.high)
    return tune.uniform(domain.low, domain.high)
