"""Which variant to try next, with which settings: the sweep's rule. Pure: no Ray, no clock.

The cheapest variant tries every draw from the space. The other cheap ones, in order of cost, try
the best few of what stood the test below them, and put those in a new order. What costs much tries
only the first of that order, from the costliest down: that is where the best model is likely to
be, and the rest fills the Pareto front. Every variant competes only with itself (`schedule`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from effnet_ray.errors import RecipeError
from effnet_ray.tune.space import Settings

CHEAP = 4.0
"""A variant that costs up to so many times the cheapest one helps to order the settings."""
CARRIED = 3
"""Settings that a cheap variant takes over from the one below."""
CARRIED_FAR = 2
"""Settings that a costly variant takes over."""


@dataclass(slots=True)
class Try:
    """A trial as the ladder sees it."""

    number: int
    """From 0, in the order in which trials were asked for."""
    variant: str
    settings: Settings
    cost: float
    """Of a full trial, device-seconds."""
    spent: float = 0.0
    """So far, device-seconds."""
    reached: float = 0.0
    """Share of a full trial, 0 to 1."""
    top1: float = 0.0
    """Best so far."""
    over: bool = False


@dataclass
class Ladder:
    """Hands out trials; `heard` and `ended` tell it what became of them."""

    costs: Mapping[str, float]
    """Variant → device-seconds of a full trial."""
    trials: int
    draw: Callable[[], Settings]
    budget: float | None = None
    """Device-seconds that the sweep may spend."""
    tries: list[Try] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Variants for which the budget was too small."""

    def __post_init__(self) -> None:
        self._upward = sorted(self.costs, key=lambda name: self.costs[name])
        if self.trials < len(self._upward):
            raise RecipeError(
                f"{self.trials} trials are too few for {len(self._upward)} variants: expected at "
                "least one each: raise --trials or list fewer --variants"
            )
        cheapest = self.costs[self._upward[0]]
        if self.budget is not None and self.budget < cheapest:
            raise RecipeError(
                f"a budget of {self.budget:,.0f} device-seconds is too small: one trial of "
                f"{self._upward[0]} takes {cheapest:,.0f}: raise --budget, or lower --epochs or "
                "--image-size"
            )
        self._numbers = count()
        self._waves = self._make_waves(cheapest)
        self._standing: list[Settings] = []
        self._planned: list[tuple[str, Settings]] = []

    def _make_waves(self, cheapest: float) -> list[dict[str, int]]:
        """What may run at the same time: variant → trials, in the order of starting."""
        ladder = [name for name in self._upward if self.costs[name] <= CHEAP * cheapest]
        far = [name for name in reversed(self._upward) if name not in ladder]
        shares = dict.fromkeys(self._upward, 1)
        left = self.trials - len(shares)
        # Up to half of the trials are second thoughts; the rest are draws of the cheapest.
        thoughts = left // 2
        for round_ in range(1, CARRIED):
            for name in [*ladder[1:], *far]:
                if thoughts and (name in ladder or round_ < CARRIED_FAR):
                    shares[name] += 1
                    thoughts, left = thoughts - 1, left - 1
        shares[self._upward[0]] += left
        waves = [{name: shares[name]} for name in ladder]
        return [*waves, {name: shares[name] for name in far}] if far else waves

    def next(self) -> Try | None:
        """The next trial; None while it depends on trials that run, or when there is none left."""
        while not self._planned:
            if not self._waves or not all(known.over for known in self.tries):
                return None
            self._learn()
            self._plan(self._waves.pop(0))
        variant, settings = self._planned.pop(0)
        if not self._affords(variant):
            if variant not in self.skipped:
                self.skipped.append(variant)
            return self.next()
        found = Try(next(self._numbers), variant, settings, self.costs[variant])
        self.tries.append(found)
        return found

    @property
    def done(self) -> bool:
        """Whether nothing is left to try."""
        return not self._planned and not self._waves and all(known.over for known in self.tries)

    @property
    def spent(self) -> float:
        """Device-seconds of all trials so far."""
        return sum(known.spent for known in self.tries)

    def heard(self, number: int, *, top1: float, reached: float, spent: float) -> None:
        """A trial has been evaluated. `reached` is its share of a full trial."""
        known = self.tries[number]
        known.top1, known.reached = max(known.top1, top1), reached
        known.spent = spent

    def ended(self, number: int) -> None:
        """A trial is over: finished, stopped or failed."""
        self.tries[number].over = True

    def _affords(self, variant: str) -> bool:
        """Whether a full trial fits into what running trials will leave of the budget."""
        if self.budget is None:
            return True
        promised = sum(known.spent if known.over else known.cost for known in self.tries)
        return promised + self.costs[variant] <= self.budget

    def _plan(self, wave: dict[str, int]) -> None:
        """First one trial of every variant of the wave, then the second thoughts."""
        if (
            not self._standing
        ):  # the first wave, or none of the first one's trials came to anything
            self._planned = [(name, self.draw()) for name, n in wave.items() for _ in range(n)]
            return
        for place in range(max(wave.values())):
            for variant, trials in wave.items():
                if place < min(trials, len(self._standing)):
                    self._planned.append((variant, self._standing[place]))

    def _learn(self) -> None:
        """Put what the last variant tried first, in its order: it is nearest to what comes."""
        if not self.tries:
            return
        last = self.tries[-1].variant
        tried = [known for known in self.tries if known.variant == last and known.reached]
        tried.sort(key=lambda known: (-known.reached, -known.top1, known.number))
        ordered = [known.settings for known in tried]
        self._standing = ordered + [old for old in self._standing if old not in ordered]
