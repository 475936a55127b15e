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

import json
import math
import platform
import statistics
from dataclasses import dataclass
from random import Random

import ray
import tyro
from search_simulation import WITHIN, asha, grid_cost, ladder

from effnet_ray.variants import DEFAULT_VARIANTS as VARIANTS, variant

EPOCHS = 16
DEVICES = 8
SETTINGS = 8
NOISE = 0.1
"""Of an evaluation, points."""
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


class SyntheticWorld:
    """A data set: what every variant and setting would come to."""

    variants, settings, epochs, costs = VARIANTS, SETTINGS, EPOCHS, COSTS

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

    def accuracy(self, variant: str, setting: int, epoch: int) -> float:
        """Eval top-1 in points after so many epochs, without the noise of evaluating."""
        share = epoch / self.epochs
        pace = self.pace * 10 ** (-0.15 * (self.rates[setting] + 3))
        behind = self.gap * (math.exp(-share / pace) - math.exp(-1 / pace))
        return self.final[variant, setting] - behind


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
    grid = grid_cost(SyntheticWorld(0))
    shares: dict[str, list[float]] = {"ladder": [], "asha": []}
    spent: dict[str, list[float]] = {"ladder": [], "asha": []}
    members = result = 0
    for seed in range(flags.seeds):
        world = SyntheticWorld(seed)
        options = {"devices": DEVICES, "seed": seed, "noise": NOISE}
        outcomes = {"ladder": ladder(world, TRIALS, **options), "asha": asha(world, **options)}
        for name, outcome in outcomes.items():
            shares[name].append(outcome.until / grid)
            spent[name].append(outcome.compute / grid)
            if name == "ladder":
                best = {v: max(world.final[v, s] for s in range(SETTINGS)) for v in VARIANTS}
                for member in pareto(best):
                    members += 1
                    result += outcome.finished.get(member, 0) >= best[member] - WITHIN
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
                "pareto_found": round(result / members, 3),
                "seeds": flags.seeds,
                "machine": platform.machine(),
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Flags))
