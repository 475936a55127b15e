"""Which variant and settings to try next: the search rule of a sweep. Pure: no Ray, no clock.

1. The cheapest variants share the sampled settings: each setting is tried by one of them, and
   ranked by how far it ends above that variant's mean. Then each of them tries the best settings
   of the others. A single cheapest variant tries them all.
2. Each of the other cheap variants, in order of cost, tries the best few settings of the next
   cheaper variant, and so ranks them anew.
3. The most expensive variant trains the best setting of that ranking, alone: the best model is
   likely to be there.
4. The other expensive variants train the top of the ranking: the rest of the Pareto front.

Trials compete only with trials of the same variant (`asha`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from effnet_ray.errors import RecipeError
from effnet_ray.sweep.planned_trials import PlannedTrial, mean_top1, outcomes_of
from effnet_ray.sweep.space import Settings

SAMPLING_FACTOR = 2.5
"""Variants up to this multiple of the cheapest one's cost share the sampling. Between Lite0 and
Lite2, on real pictures, sampling with Lite0 alone was worse than random search
(`benchmarks/real/sweeps.py`, which this constant and `asha.RUNG` were chosen with)."""
# The four constants below were chosen with `benchmarks/search.py`.
CHEAP_FACTOR = 4.0
"""A variant counts as cheap up to this multiple of the cheapest variant's cost."""
MIN_SAMPLED = 8
"""Trials of the cheapest variant before other variants get a second setting; never more
than half of the trials."""
MAX_CARRIED = 6
"""Maximum number of settings that a cheap variant takes over from the next cheaper one."""
MAX_CARRIED_EXPENSIVE = 2
"""Maximum number of settings that an expensive variant takes over."""


def check_trials(trials: int, variants: Sequence[str]) -> None:
    """Raises RecipeError if there are fewer trials than variants."""
    if trials < len(variants):
        raise RecipeError(
            f"--trials {trials} is too few for {len(variants)} variants: expected at least one "
            "each: raise --trials or list fewer --variants"
        )


@dataclass
class VariantSchedule:
    """Hands out trials; the caller reports back with `record_progress` and `record_end`."""

    costs: Mapping[str, float]
    """Variant → expected device-seconds of a full trial."""
    trials: int
    sample: Callable[[int], Settings]
    """Trial number → newly sampled settings."""
    budget: float | None = None
    """Device-seconds the sweep may spend."""
    earlier: Mapping[int, bool] = field(default_factory=dict)
    """Decisions of an earlier call: trial number → True if started, False if skipped."""
    planned: list[PlannedTrial] = field(default_factory=list)
    """All trials so far, indexed by number."""

    def __post_init__(self) -> None:
        self._by_cost = sorted(self.costs, key=lambda name: self.costs[name])
        check_trials(self.trials, self._by_cost)
        cheapest = self.costs[self._by_cost[0]]
        self._sampling = [
            name for name in self._by_cost if self.costs[name] <= SAMPLING_FACTOR * cheapest
        ]
        self._rounds = self._make_rounds(cheapest)
        self._ranking: list[Settings] = []
        self._round_start = 0
        self._queue: list[tuple[str, Settings | None]] = []

    @property
    def rounds(self) -> list[dict[str, int]]:
        """Rounds still to come, each as variant → trials; trials of one round may run at once."""
        return self._rounds

    def _make_rounds(self, cheapest: float) -> list[dict[str, int]]:
        """All rounds, in the order they start."""
        cheap = [name for name in self._by_cost if self.costs[name] <= CHEAP_FACTOR * cheapest]
        expensive = [name for name in reversed(self._by_cost) if name not in cheap]
        trials = self._trials_per_variant(cheap, expensive)
        shared = sum(trials[name] for name in self._sampling)
        rounds = _sampling_rounds(self._sampling, shared)
        rounds += [{name: trials[name]} for name in cheap if name not in self._sampling]
        if expensive:
            first, others = expensive[0], expensive[1:]
            rounds.append({first: 1})
            rounds.append({first: trials[first] - 1, **dict.fromkeys(others, 1)})
            rounds.append({name: trials[name] - 1 for name in others})
        return [round_ for round_ in rounds if sum(round_.values())]

    def _trials_per_variant(self, cheap: list[str], expensive: list[str]) -> dict[str, int]:
        """Variant → trials: one each, then carried-over settings; the cheapest gets the rest."""
        trials = dict.fromkeys([*cheap, *expensive], 1)
        left = self.trials - len(trials)
        sampled = max(math.ceil(left / 4), min(left // 2, MIN_SAMPLED - 1))
        for carried in range(1, MAX_CARRIED):
            for name in [*cheap[1:], *(expensive if carried < MAX_CARRIED_EXPENSIVE else [])]:
                if left > sampled:
                    trials[name] += 1
                    left -= 1
        trials[cheap[0]] += left
        return trials

    def next(self) -> PlannedTrial | None:
        """The next trial; None while it depends on running trials, or when none is left."""
        while True:
            if not self._queue:
                if not self._rounds or not all(trial.over for trial in self.planned):
                    return None
                self._update_ranking()
                self._fill_queue(self._rounds.pop(0))
            variant, settings = self._queue.pop(0)
            number = len(self.planned)
            if settings is None:
                settings = self.sample(number)
            trial = PlannedTrial(number, variant, settings, self.costs[variant])
            trial.skipped = trial.over = not self._fits_budget(trial)
            self.planned.append(trial)
            if not trial.skipped:
                return trial

    @property
    def done(self) -> bool:
        """Whether no trial is running, queued or to come."""
        return not self._queue and not self._rounds and all(trial.over for trial in self.planned)

    @property
    def spent(self) -> float:
        """Device-seconds of all trials so far."""
        return sum(trial.spent for trial in self.planned)

    @property
    def pace(self) -> float:
        """Measured over expected device-seconds; 1 before the first report."""
        expected = sum(trial.progress * trial.cost for trial in self.planned)
        measured = sum(trial.spent for trial in self.planned if trial.progress)
        return measured / expected if expected else 1.0

    @property
    def remaining(self) -> float:
        """Device-seconds the rest of the sweep takes if no trial is stopped early."""
        running = sum(
            max(0, trial.cost * (1 - trial.progress)) for trial in self.planned if not trial.over
        )
        queued = sum(self.costs[variant] for variant, _ in self._queue)
        later = sum(self.costs[name] * n for round_ in self._rounds for name, n in round_.items())
        return self.pace * (running + queued + later)

    def record_progress(self, number: int, *, top1: float, progress: float, spent: float) -> None:
        """Record a trial's evaluation; `progress` is its share of the full trial, 0 to 1."""
        trial = self.planned[number]
        trial.top1, trial.progress = max(trial.top1, top1), progress
        trial.spent = spent

    def record_end(self, number: int) -> None:
        """Record that a trial has finished, was stopped or failed."""
        self.planned[number].over = True

    def _fits_budget(self, new: PlannedTrial) -> bool:
        """Whether the budget covers the full trial after what running trials will take."""
        if new.number in self.earlier:
            return self.earlier[new.number]
        if self.budget is None:
            return True
        committed = sum(
            trial.spent if trial.over else max(trial.spent, self.pace * trial.cost)
            for trial in self.planned
        )
        return committed + self.pace * new.cost <= self.budget

    def _fill_queue(self, round_: dict[str, int]) -> None:
        """Queue a round: first one trial per variant, then further carried-over settings.

        Settings are sampled anew where the ranking is too short: in the first round, or when
        trials failed.
        """
        if self._ranking and list(round_) == self._sampling:
            self._queue += self._best_pairs(sum(round_.values()))
            return
        carried = {variant: self._untried(variant) for variant in round_}
        for place in range(max(round_.values())):
            for variant, trials in round_.items():
                if place < trials:
                    options = carried[variant]
                    self._queue.append((variant, options[place] if place < len(options) else None))

    def _best_pairs(self, count: int) -> list[tuple[str, Settings | None]]:
        """The sampling variants' untried settings that should do best.

        Those of trials that got furthest come first. A pair's forecast is the variant's mean and
        half of what the setting was above the mean of the variant that tried it: half, because one
        trial says little.
        """
        tried = [trial for trial in self.planned if trial.progress]
        mean, outcomes = mean_top1(tried), outcomes_of(tried)
        untried = {variant: self._untried(variant) for variant in self._sampling}
        pairs = [
            (variant, outcome)
            for variant in self._sampling
            for outcome in outcomes
            if variant in mean and outcome.settings in untried[variant]
        ]
        pairs.sort(key=lambda pair: (-pair[1].progress, -mean[pair[0]] - pair[1].above / 2))
        best = [(variant, outcome.settings) for variant, outcome in pairs[:count]]
        return [*best, *[(self._sampling[0], None)] * (count - len(best))]

    def _untried(self, variant: str) -> list[Settings]:
        """Ranked settings that the variant has not tried."""
        tried = [trial.settings for trial in self.planned if trial.variant == variant]
        return [settings for settings in self._ranking if settings not in tried]

    def _update_ranking(self) -> None:
        """Move the settings of the last round's variants to the front, in their order.

        Of all variants tried, these are closest in size to the next ones, so their ranking
        predicts theirs best.
        """
        variants = {trial.variant for trial in self.planned[self._round_start :]}
        tried = [trial for trial in self.planned if trial.progress and trial.variant in variants]
        ordered = [outcome.settings for outcome in outcomes_of(tried)]
        self._ranking = ordered + [old for old in self._ranking if old not in ordered]
        self._round_start = len(self.planned)


def _sampling_rounds(variants: Sequence[str], trials: int) -> list[dict[str, int]]:
    """Rounds in which the cheapest variants sample settings, and then try each other's.

    The second round has room for at most half of the pairs that are left, so that it chooses: of
    two variants' trials, two thirds sample.
    """
    if len(variants) == 1:
        return [dict.fromkeys(variants, trials)]
    share = 2 / 3 if len(variants) == 2 else 1 / 2
    sampled = max(len(variants), int(share * trials))
    return [_shared(variants, sampled), _shared(variants, trials - sampled)]


def _shared(variants: Sequence[str], trials: int) -> dict[str, int]:
    """Variant → trials: as even as can be, the cheapest first."""
    each, rest = divmod(trials, len(variants))
    return {name: each + (place < rest) for place, name in enumerate(variants)}
