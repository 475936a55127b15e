"""Simulates searches for the best of a grid of variants and settings, for `search.py` and
`real/sweeps.py`: the learning curves are given, the schedulers are Ray Tune's and ours."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from effnet_ray.sweep.asha import PROGRESS, SPENT, TOP1, Brackets
from effnet_ray.sweep.scheduled_search import ScheduledSearch
from effnet_ray.sweep.variant_schedule import VariantSchedule

WITHIN = 0.5
"""Points of top-1 below the grid's best that count as having found it."""


class World(Protocol):
    """A data set: what every variant and setting comes to."""

    @property
    def variants(self) -> Sequence[str]:
        """The variants, cheapest first."""

    @property
    def settings(self) -> int:
        """Number of settings of each variant."""

    @property
    def epochs(self) -> int:
        """Epochs of a full trial."""

    @property
    def costs(self) -> Mapping[str, float]:
        """Variant → device-seconds of an epoch, in any unit."""

    def accuracy(self, variant: str, setting: int, epoch: int) -> float:
        """Eval top-1 after so many epochs, in points."""


@dataclass
class Outcome:
    """What a search did."""

    compute: float = 0.0
    """All that was spent, in the unit of the costs."""
    until: float = math.inf
    """Spent when a model within `WITHIN` points of the best had been trained."""
    best: float = 0.0
    """Highest top-1 of any epoch of any trial, points."""
    finished: dict[str, float] = field(default_factory=dict)
    """Variant → best top-1 of a full trial, points."""
    trace: list[tuple[float, float]] = field(default_factory=list)
    """What was spent and the best top-1 by then, after every epoch of any trial."""

    def best_at(self, compute: float) -> float:
        """Best top-1 when so much had been spent, points; 0 before the first epoch."""
        return max((best for spent, best in self.trace if spent <= compute), default=0.0)


Ask = Callable[[str], dict[str, Any] | str | None]
"""Trial's id → its config; None: none now; a string: no more."""
Tell = Callable[[str, dict[str, Any], bool], None]
"""Takes a trial's id, its report and whether it is over."""


def grid_best(world: World) -> float:
    """Highest top-1 of any epoch of a full trial, points: a release is a run's best epoch."""
    return max(
        world.accuracy(variant, setting, epoch)
        for variant in world.variants
        for setting in range(world.settings)
        for epoch in range(1, world.epochs + 1)
    )


def grid_cost(world: World) -> float:
    """Cost of all full trials."""
    return world.epochs * world.settings * sum(world.costs.values())


def ladder(world: World, trials: int, *, devices: int, seed: int, noise: float = 0.0) -> Outcome:
    """The sweep's own rule; the cheapest variants begin with the settings in random order."""
    order = Random(seed).sample(range(world.settings), world.settings)
    full = {name: world.epochs * cost for name, cost in world.costs.items()}
    rule = VariantSchedule(
        full, trials, lambda number: {"setting": order[number % world.settings]}
    )
    search = ScheduledSearch(rule, _Log(rule))  # type: ignore[arg-type]

    def tell(trial: str, report: dict[str, Any], over: bool) -> None:
        (search.on_trial_complete if over else search.on_trial_result)(trial, report)

    return _simulate(world, Brackets(), search.suggest, tell, devices=devices, noise=noise)


def asha(
    world: World, *, devices: int, seed: int, noise: float = 0.0, budget: float = math.inf
) -> Outcome:
    """Ray Tune's ASHA over the grid in random order, epochs as resource."""
    scheduler = ASHAScheduler(
        time_attr="epoch", metric=TOP1, mode="max", max_t=world.epochs, reduction_factor=4
    )
    return _over_grid(world, scheduler, devices, seed, noise, budget)


def random_search(
    world: World, *, devices: int, seed: int, noise: float = 0.0, budget: float = math.inf
) -> Outcome:
    """The grid in random order, every trial to its end."""
    return _over_grid(world, FIFOScheduler(), devices, seed, noise, budget)


def _over_grid(
    world: World, scheduler: TrialScheduler, devices: int, seed: int, noise: float, budget: float
) -> Outcome:
    grid = [
        {"variant": name, "settings": {"setting": s}}
        for name in world.variants
        for s in range(world.settings)
    ]
    Random(seed).shuffle(grid)
    return _simulate(
        world,
        scheduler,
        lambda trial: grid.pop() if grid else None,
        lambda *report: None,
        devices=devices,
        noise=noise,
        budget=budget,
    )


class _Log:
    """A sweep's trial log without storage."""

    def __init__(self, rule: VariantSchedule) -> None:
        self._rule = rule

    def replay(self, number: int) -> bool:
        """No trial has run before."""
        return False

    def start(self, number: int, variant: str, settings: dict[str, Any]) -> None:
        """Not recorded."""

    def report(self, number: int, report: dict[str, Any]) -> None:
        """Pass it to the rule."""
        self._rule.record_progress(
            number, top1=report[TOP1], progress=report[PROGRESS], spent=report[SPENT]
        )

    def end(self, number: int, *, crashed: bool) -> None:
        """Pass it to the rule."""
        self._rule.record_end(number)

    def record_skipped(self) -> None:
        """There is no budget."""


def _simulate(
    world: World,
    scheduler: TrialScheduler,
    ask: Ask,
    tell: Tell,
    *,
    devices: int,
    noise: float,
    budget: float = math.inf,
) -> Outcome:
    """Run trials on the devices as the scheduler and the searcher say, until the budget is spent.

    Reports have so much Gaussian noise, in points; the outcome has none.
    """
    outcome, best, random = Outcome(), grid_best(world), Random(1)
    running: list[tuple[float, int, Trial, int]] = []
    now, number, idle = 0.0, 0, devices
    while True:
        while idle:
            config = ask(f"t{number}")
            if not isinstance(config, dict):
                break
            trial = Trial("simulated", config=config, stub=True, trial_id=f"t{number}")
            scheduler.on_trial_add(None, trial)
            heapq.heappush(running, (now + world.costs[config["variant"]], number, trial, 1))
            number, idle = number + 1, idle - 1
        if not running:
            return outcome
        now, order, trial, epoch = heapq.heappop(running)
        variant, setting = trial.config["variant"], trial.config["settings"]["setting"]
        cost, top1 = world.costs[variant], world.accuracy(variant, setting, epoch)
        if outcome.compute + cost > budget:
            return outcome
        outcome.compute += cost
        outcome.best = max(outcome.best, top1)
        outcome.trace.append((outcome.compute, outcome.best))
        if top1 >= best - WITHIN:
            outcome.until = min(outcome.until, outcome.compute)
        if epoch == world.epochs:
            outcome.finished[variant] = max(outcome.finished.get(variant, 0.0), top1)
        report = {
            TOP1: top1 + random.gauss(0, noise),
            PROGRESS: epoch / world.epochs,
            SPENT: epoch * cost,
            "epoch": epoch,
        }
        verdict = scheduler.on_trial_result(None, trial, report)
        over = epoch == world.epochs or verdict == TrialScheduler.STOP
        tell(trial.trial_id, report, over)
        if over:
            scheduler.on_trial_complete(None, trial, report)
            idle += 1
        else:
            heapq.heappush(running, (now + cost, order, trial, epoch + 1))
