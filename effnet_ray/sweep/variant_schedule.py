"""Which variant to try next, with which settings: the sweep's rule. Pure: no Ray, no clock.

The cheapest variant tries every draw from the space. The other cheap ones, in order of cost, try
the best few of what stood the test below them, and put those in a new order. What costs much tries
only the first of that order: the costliest alone, since the best model is likely to be there, then
the rest of the Pareto front. Every variant competes only with itself (`schedule`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from effnet_ray.errors import RecipeError
from effnet_ray.sweep.space import Settings

CHEAP = 4.0
"""A variant that costs up to so many times the cheapest one helps to order the settings."""
DRAWS = 8
"""Draws that the cheapest variant gets before others get second thoughts, of half the trials."""
CARRIED = 6
"""Most settings that a cheap variant takes over from the one below."""
CARRIED_FAR = 2
"""Most settings that a costly variant takes over."""
# These, and the rungs of `schedule`: chosen with `benchmarks/search.py`.


@dataclass(slots=True)
class PlannedTrial:
    """A trial as the ladder sees it."""

    number: int
    """From 0, in the order in which trials are planned."""
    variant: str
    settings: Settings
    cost: float
    """Of a full trial, device-seconds as foreseen."""
    spent: float = 0.0
    """So far, device-seconds as measured."""
    reached: float = 0.0
    """Share of a full trial, 0 to 1."""
    top1: float = 0.0
    """Best so far."""
    over: bool = False
    skipped: bool = False
    """Whether the budget had no room for it."""


@dataclass
class VariantSchedule:
    """Hands out trials; `heard` and `ended` tell it what became of them."""

    costs: Mapping[str, float]
    """Variant → device-seconds of a full trial, as foreseen."""
    trials: int
    draw: Callable[[int], Settings]
    """Number of a trial → fresh settings."""
    budget: float | None = None
    """Device-seconds that the sweep may spend."""
    begun: Mapping[int, bool] = field(default_factory=dict)
    """What an earlier call decided: number → whether the trial was begun, not skipped."""
    tries: list[PlannedTrial] = field(default_factory=list)
    """All so far; number n is at place n."""

    def __post_init__(self) -> None:
        self._upward = sorted(self.costs, key=lambda name: self.costs[name])
        if self.trials < len(self._upward):
            raise RecipeError(
                f"{self.trials} trials are too few for {len(self._upward)} variants: expected at "
                "least one each: raise --trials or list fewer --variants"
            )
        self._waves = self._make_waves(self.costs[self._upward[0]])
        self._standing: list[Settings] = []
        self._planned: list[tuple[str, Settings | None]] = []

    @property
    def waves(self) -> list[dict[str, int]]:
        """What is still to come, and may run at the same time: variant → trials."""
        return self._waves

    def _make_waves(self, cheapest: float) -> list[dict[str, int]]:
        """In the order of starting."""
        cheap = [name for name in self._upward if self.costs[name] <= CHEAP * cheapest]
        far = [name for name in reversed(self._upward) if name not in cheap]
        trials = self._share_out(cheap, far)
        waves = [{name: trials[name]} for name in cheap]
        if far:
            first, others = far[0], far[1:]
            waves.append({first: 1})
            waves.append({first: trials[first] - 1, **dict.fromkeys(others, 1)})
            waves.append({name: trials[name] - 1 for name in others})
        return [wave for wave in waves if sum(wave.values())]

    def _share_out(self, cheap: list[str], far: list[str]) -> dict[str, int]:
        """Variant → trials: one each, then second thoughts; the rest are draws of the cheapest."""
        trials = dict.fromkeys([*cheap, *far], 1)
        left = self.trials - len(trials)
        draws = max(math.ceil(left / 4), min(left // 2, DRAWS - 1))
        for round_ in range(1, CARRIED):
            for name in [*cheap[1:], *(far if round_ < CARRIED_FAR else [])]:
                if left > draws:
                    trials[name] += 1
                    left -= 1
        trials[cheap[0]] += left
        return trials

    def next(self) -> PlannedTrial | None:
        """The next trial; None while it depends on trials that run, or when there is none left."""
        while True:
            if not self._planned:
                if not self._waves or not all(known.over for known in self.tries):
                    return None
                self._learn()
                self._plan(self._waves.pop(0))
            variant, settings = self._planned.pop(0)
            number = len(self.tries)
            if settings is None:
                settings = self.draw(number)
            found = PlannedTrial(number, variant, settings, self.costs[variant])
            found.skipped = found.over = not self._affords(found)
            self.tries.append(found)
            if not found.skipped:
                return found

    @property
    def done(self) -> bool:
        """Whether nothing is left to try."""
        return not self._planned and not self._waves and all(known.over for known in self.tries)

    @property
    def spent(self) -> float:
        """Device-seconds of all trials so far."""
        return sum(known.spent for known in self.tries)

    @property
    def pace(self) -> float:
        """Measured device-seconds for each foreseen one; 1 before the first report."""
        foreseen = sum(known.reached * known.cost for known in self.tries)
        measured = sum(known.spent for known in self.tries if known.reached)
        return measured / foreseen if foreseen else 1.0

    @property
    def to_come(self) -> float:
        """Device-seconds that all that is left would take, if no trial were stopped early."""
        running = sum(max(0, known.cost * (1 - known.reached))
                      for known in self.tries if not known.over)  # fmt: skip
        planned = sum(self.costs[variant] for variant, _ in self._planned)
        later = sum(self.costs[name] * n for wave in self._waves for name, n in wave.items())
        return self.pace * (running + planned + later)

    def heard(self, number: int, *, top1: float, reached: float, spent: float) -> None:
        """A trial has been evaluated. `reached` is its share of a full trial."""
        known = self.tries[number]
        known.top1, known.reached = max(known.top1, top1), reached
        known.spent = spent

    def ended(self, number: int) -> None:
        """A trial is over: finished, stopped or failed."""
        self.tries[number].over = True

    def _affords(self, wanted: PlannedTrial) -> bool:
        """Whether a full trial fits into what running trials will leave of the budget."""
        if wanted.number in self.begun:
            return self.begun[wanted.number]
        if self.budget is None:
            return True
        promised = sum(
            known.spent if known.over else max(known.spent, self.pace * known.cost)
            for known in self.tries
        )
        return promised + self.pace * wanted.cost <= self.budget

    def _plan(self, wave: dict[str, int]) -> None:
        """First one trial of every variant of the wave, then the second thoughts.

        Fresh draws where too little stands: in the first wave, or when trials came to nothing.
        """
        rows = {variant: self._untried(variant) for variant in wave}
        for place in range(max(wave.values())):
            for variant, trials in wave.items():
                if place < trials:
                    settings = rows[variant][place] if place < len(rows[variant]) else None
                    self._planned.append((variant, settings))

    def _untried(self, variant: str) -> list[Settings]:
        """What stands and this variant has not tried, in order."""
        tried = [known.settings for known in self.tries if known.variant == variant]
        return [settings for settings in self._standing if settings not in tried]

    def _learn(self) -> None:
        """Put what the last variant tried first, in its order: it is nearest to what comes."""
        tried = [known for known in self.tries if known.reached]
        tried = [known for known in tried if known.variant == tried[-1].variant]
        tried.sort(key=lambda known: (-known.reached, -known.top1, known.number))
        ordered = [known.settings for known in tried]
        self._standing = ordered + [old for old in self._standing if old not in ordered]
