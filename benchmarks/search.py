"""What a sweep costs until it has found what the full grid finds.

    python benchmarks/search.py [--seeds 200]

Eight settings × B0–B7, 16 epochs each, on synthetic learning curves: a variant's ceiling follows
its ImageNet top-1, every data set with its own slope and noise; a setting's loss is quadratic in
the distance of its learning rate from an optimum that moves a little from variant to variant; low
rates learn later. The schedulers are Ray Tune's own ASHA, asked as Tune asks them, on eight
devices at once:

- ladder: our sweep's rule (`effnet_ray.sweep.variant_schedule`, `effnet_ray.sweep.asha`);
- asha: all 64 in random order through one ASHA with epochs as resource.

Compute is device-seconds by timm's measured training speeds. Prints a table and, last, one line
of JSON: medians over the seeds of the share of the grid's compute that was spent when the first
model within 0.5 points of the grid's best had been trained.
"""

import heapq
import json
import math
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import ray
import tyro
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from effnet_ray.sweep.asha import PROGRESS, SPENT, TOP1, Brackets
from effnet_ray.sweep.scheduled_search import ScheduledSearch
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.variants import DEFAULT_VARIANTS as VARIANTS, variant

EPOCHS = 16
DEVICES = 8
SETTINGS = 8
WITHIN = 0.5
IMAGENET = dict(
    zip(VARIANTS, (78.68, 81.39, 82.41, 84.05, 85.16, 86.10, 86.48, 86.85), strict=True)
)
"""Top-1 of the NoisyStudent weights (timm `results/results-imagenet.csv`)."""
COSTS = {name: 1779 / variant(name).train_images_per_s for name in VARIANTS}
"""Of an epoch, in epochs of B0."""


@dataclass(frozen=True)
class Flags:
    """What is simulated."""

    seeds: int = 200
    """data sets"""


class World:
    """A data set: what every variant and setting would come to."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        top, slope = random.uniform(80, 98), random.uniform(0.1, 0.6)
        optimum, steep = random.gauss(-3, 0.3), random.uniform(2, 6)
        self.rates = [random.uniform(-4, -2) for _ in range(SETTINGS)]
        luck = [random.uniform(0, 0.6) for _ in range(SETTINGS)]
        self.final: dict[tuple[str, int], float] = {}
        for place, name in enumerate(VARIANTS):
            ceiling = top + slope * (IMAGENET[name] - IMAGENET["b7"]) + random.gauss(0, 0.15)
            best = optimum - 0.05 * place + random.gauss(0, 0.1)
            for s, rate in enumerate(self.rates):
                lost = steep * (rate - best) ** 2 + luck[s] + random.gauss(0, 0.1)
                self.final[name, s] = ceiling - lost
        self.gap, self.pace = random.uniform(15, 40), random.uniform(0.1, 0.25)

    def accuracy(self, variant: str, setting: int, share: float) -> float:
        """Eval top-1 in points after a share of the epochs, without the noise of evaluating."""
        pace = self.pace * 10 ** (-0.15 * (self.rates[setting] + 3))
        behind = self.gap * (math.exp(-share / pace) - math.exp(-1 / pace))
        return self.final[variant, setting] - behind


@dataclass
class Outcome:
    """What a search found."""

    compute: float = 0.0
    """All that was spent, epochs of B0."""
    until: float = math.inf
    """Spent when a model within 0.5 points of the best had been trained."""
    finished: dict[str, float] | None = None
    """Variant → best accuracy of a full trial."""


Next = Callable[[int], tuple[str, int] | None]
"""Number of a trial → its variant and setting; None: nothing now."""


def simulate(
    world: World,
    scheduler: TrialScheduler,
    ask: Callable[[str], dict[str, Any] | str | None],
    tell: Callable[[str, dict[str, Any], bool], None],
) -> Outcome:
    """Run trials on the devices as the scheduler and the searcher say."""
    found, best, noise = Outcome(finished={}), max(world.final.values()), Random(1)
    running: list[tuple[float, int, Trial, int]] = []
    now, number, idle = 0.0, 0, DEVICES
    while True:
        while idle:
            name = f"t{number}"
            config = ask(name)
            if not isinstance(config, dict):
                break
            trial = Trial("simulated", config=config, stub=True, trial_id=name)
            scheduler.on_trial_add(None, trial)
            heapq.heappush(running, (now + COSTS[config["variant"]], number, trial, 1))
            number, idle = number + 1, idle - 1
        if not running:
            return found
        now, order, trial, epoch = heapq.heappop(running)
        variant, setting = trial.config["variant"], trial.config["settings"]["setting"]
        share = epoch / EPOCHS
        truth = world.accuracy(variant, setting, share)
        found.compute += COSTS[variant]
        if truth >= best - WITHIN:
            found.until = min(found.until, found.compute)
        report = {
            TOP1: truth + noise.gauss(0, 0.1),
            PROGRESS: share,
            SPENT: epoch * COSTS[variant],
            "epoch": epoch,
        }
        verdict = scheduler.on_trial_result(None, trial, report)
        if epoch == EPOCHS and found.finished is not None:
            found.finished[variant] = max(found.finished.get(variant, 0), truth)
        over = epoch == EPOCHS or verdict == TrialScheduler.STOP
        tell(trial.trial_id, report, over)
        if over:
            scheduler.on_trial_complete(None, trial, report)
            idle += 1
        else:
            heapq.heappush(running, (now + COSTS[variant], order, trial, epoch + 1))


class Memory:
    """The sweep's book, without storage."""

    def __init__(self, rule: VariantSchedule) -> None:
        self._rule = rule

    def replay(self, number: int) -> bool:
        """Nothing was."""
        return False

    def start(self, number: int, variant: str, settings: dict[str, Any]) -> None:
        """Not written down."""

    def report(self, number: int, report: dict[str, Any]) -> None:
        """The rule is told."""
        self._rule.record_progress(
            number, top1=report[TOP1], progress=report[PROGRESS], spent=report[SPENT]
        )

    def end(self, number: int, *, crashed: bool) -> None:
        """The rule is told."""
        self._rule.record_end(number)

    def record_skipped(self) -> None:
        """There is no budget."""


def ladder(world: World) -> Outcome:
    """Our rule; its first wave tries every setting once."""
    full = {name: EPOCHS * cost for name, cost in COSTS.items()}
    rule = VariantSchedule(full, TRIALS, lambda number: {"setting": number % SETTINGS})
    search = ScheduledSearch(rule, Memory(rule))

    def tell(trial: str, report: dict[str, Any], over: bool) -> None:
        (search.on_trial_complete if over else search.on_trial_result)(trial, report)

    return simulate(world, Brackets(), search.suggest, tell)


def asha(world: World) -> Outcome:
    """All of the grid, epochs as resource."""
    grid = [
        {"variant": name, "settings": {"setting": s}} for name in VARIANTS for s in range(SETTINGS)
    ]
    Random(0).shuffle(grid)
    scheduler = ASHAScheduler(
        time_attr="epoch", metric=TOP1, mode="max", max_t=EPOCHS, reduction_factor=4
    )
    return simulate(
        world, scheduler, lambda trial: grid.pop() if grid else None, lambda *told: None
    )


TRIALS = 34
"""Eight of B0, six of B1 to B3, two of B4 to B7."""


def pareto(best: dict[str, float]) -> list[str]:
    """Variants that no cheaper one equals."""
    front: list[str] = []
    for name in VARIANTS:
        if name in best and all(best[name] > best[cheaper] for cheaper in front):
            front.append(name)
    return front


def main(flags: Flags) -> None:
    """Simulate and print."""
    grid = EPOCHS * SETTINGS * sum(COSTS.values())
    shares: dict[str, list[float]] = {"ladder": [], "asha": []}
    spent: dict[str, list[float]] = {"ladder": [], "asha": []}
    members = found = 0
    for seed in range(flags.seeds):
        for name, search in (("ladder", ladder), ("asha", asha)):
            world = World(seed)
            outcome = search(world)
            shares[name].append(outcome.until / grid)
            spent[name].append(outcome.compute / grid)
            if name == "ladder":
                best = {v: max(world.final[v, s] for s in range(SETTINGS)) for v in VARIANTS}
                for member in pareto(best):
                    members += 1
                    found += (outcome.finished or {}).get(member, 0) >= best[member] - WITHIN
    for name, values in shares.items():
        reached = [value for value in values if value < math.inf]
        print(
            f"{name:<7} reached in {len(reached)} of {flags.seeds}; of the grid's compute "
            f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}); "
            f"{statistics.median(spent[name]):.3f} at the end"
        )
    ratios = [
        mine / other if min(mine, other) < math.inf else 1.0  # neither found it
        for mine, other in zip(shares["ladder"], shares["asha"], strict=True)
    ]
    print(
        json.dumps(
            {
                "vs_grid": round(statistics.median(shares["ladder"]), 3),
                "vs_grid_at_95_percent": round(
                    sorted(shares["ladder"])[math.ceil(0.95 * flags.seeds) - 1], 3
                ),
                "vs_asha": round(statistics.median(ratios), 3),
                "reached": sum(value < math.inf for value in shares["ladder"]) / flags.seeds,
                "pareto_found": round(found / members, 3),
                "seeds": flags.seeds,
                "machine": platform.machine(),
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Flags))
