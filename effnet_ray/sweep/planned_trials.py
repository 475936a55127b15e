"""The trials of a sweep's schedule, and what they say about settings. Pure."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effnet_ray.sweep.space import Settings


@dataclass(slots=True)
class PlannedTrial:
    """A trial as the schedule sees it."""

    number: int
    """From 0, in planning order."""
    variant: str
    settings: Settings
    cost: float
    """Expected device-seconds of the full trial."""
    spent: float = 0.0
    """Measured device-seconds so far."""
    progress: float = 0.0
    """Share of the full trial done, 0 to 1."""
    top1: float = 0.0
    """Best so far."""
    over: bool = False
    skipped: bool = False
    """Whether it was left out because the budget had no room for it."""


@dataclass(frozen=True, slots=True)
class SettingOutcome:
    """What a setting came to, over all variants that tried it."""

    settings: Settings
    progress: float
    """The furthest that a trial of it got."""
    above: float
    """Mean top-1 above the means of the variants that tried it."""


def outcomes_of(trials: Sequence[PlannedTrial]) -> list[SettingOutcome]:
    """The outcome of each setting; those that got furthest first, then the best."""
    mean, of_settings = mean_top1(trials), defaultdict[str, list[PlannedTrial]](list)
    for trial in trials:
        of_settings[json.dumps(trial.settings, sort_keys=True)].append(trial)
    outcomes = [
        SettingOutcome(
            group[0].settings,
            max(trial.progress for trial in group),
            statistics.mean(trial.top1 - mean[trial.variant] for trial in group),
        )
        for group in of_settings.values()
    ]
    return sorted(outcomes, key=lambda outcome: (-outcome.progress, -outcome.above))


def mean_top1(trials: Iterable[PlannedTrial]) -> dict[str, float]:
    """Variant → mean of its trials' best top-1."""
    of_variant = defaultdict[str, list[float]](list)
    for trial in trials:
        of_variant[trial.variant].append(trial.top1)
    return {name: statistics.mean(values) for name, values in of_variant.items()}
