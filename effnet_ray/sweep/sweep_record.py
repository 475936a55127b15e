"""A sweep's own record in storage: what it is, what became of each trial, how it ended.

Resuming reads these and the trials' own runs, nothing else: Ray Tune's state is disposable.

    RUNS/NAME/sweep.json          written once, before the first trial
    RUNS/NAME/trials/NNN.json     written when a trial begins, reports and ends
    RUNS/NAME/runs/NAME-NNN-bN/   the trial's run (`train.record`)
    RUNS/NAME/report.html         written at the end, as is
    RUNS/NAME/outcome.json
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, RecipeError, RunExistsError, StorageError
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict
from effnet_ray.sweep.space import Settings

SWEEP, TRIALS, RUNS, REPORT, OUTCOME = (
    "sweep.json",
    "trials",
    "runs",
    "report.html",
    "outcome.json",
)

RUNNING, FINISHED, STOPPED, FAILED, SKIPPED = "running", "finished", "stopped", "failed", "skipped"
"""States of a trial: stopped at a rung or by the budget; skipped where the budget has no room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a sweep is: fixed before its first trial."""

    name: str
    recipe: Recipe
    """What all trials share."""
    variants: tuple[str, ...]
    trials: int
    space: dict[str, Any]
    """Field → domain, as `space` writes them."""
    searcher: str
    """random or tpe."""
    budget: float | None
    """Device-seconds it may spend."""
    data: str
    """URI of the data set when the sweep began."""
    fingerprint: str
    """Of the data set."""

    def trial_recipe(self, variant: str, settings: Settings) -> Recipe:
        """The recipe of a trial."""
        return replace(self.recipe, variant=variant, **settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One evaluation of a trial."""

    reached: float
    """Share of the trial's epochs, above 0, up to 1."""
    eval_top1: float
    device_seconds: float
    """All that the trial has spent so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One sampled Recipe and what became of it."""

    number: int
    variant: str
    settings: Settings
    state: str
    run: str
    """Name of its run."""
    curve: tuple[Point, ...] = ()
    reason: str = ""
    """Why it failed."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state != RUNNING

    @property
    def eval_top1(self) -> float:
        """Best so far."""
        return max((point.eval_top1 for point in self.curve), default=0.0)

    @property
    def reached(self) -> float:
        """Share of its epochs, 0 to 1."""
        return self.curve[-1].reached if self.curve else 0.0

    @property
    def device_seconds(self) -> float:
        """Spent so far, as reported."""
        return self.curve[-1].device_seconds if self.curve else 0.0


def begin(sweep: Sweep, uri: str) -> None:
    """Record the sweep. Raises RunExistsError where the name belongs to another one."""
    record = storage.join(uri, SWEEP)
    try:
        storage.write_bytes(record, _json(sweep), exclusive=True)
    except AlreadyExistsError:
        with_other = _differences(json.loads(_json(sweep)), _read(record))
        if with_other:
            raise RunExistsError(
                f"sweep {sweep.name!r} exists with another {with_other}: choose another --name, "
                "or the recorded values"
            ) from None


def _differences(asked: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Names of the fields that differ; where the data lie is no difference."""
    return ", ".join(
        f"{name} ({found.get(name)!r}, asked for {value!r})"
        for name, value in asked.items()
        if name != "data" and value != found.get(name)
    )


def write_trial(trial: Trial, uri: str) -> None:
    """Record what has become of a trial so far."""
    storage.write_bytes(storage.join(uri, TRIALS, f"{trial.number:03d}.json"), _json(trial))


def trials(uri: str) -> dict[int, Trial]:
    """Number → trial, as recorded. Raises StorageError where a record is damaged."""
    found = {}
    for file in storage.sizes(storage.join(uri, TRIALS)):
        record = storage.join(uri, TRIALS, file)
        content = _read(record)
        try:
            content["curve"] = tuple(from_dict(Point, point) for point in content["curve"])
            trial = from_dict(Trial, content)
        except (RecipeError, LookupError, TypeError) as error:
            raise StorageError(_damaged(record, error)) from error
        found[trial.number] = trial
    return found


def write_outcome(outcome: Mapping[str, Any], uri: str) -> None:
    """Record that the sweep has ended."""
    storage.write_bytes(
        storage.join(uri, OUTCOME), json.dumps(outcome, indent=1, ensure_ascii=False).encode()
    )


def outcome(uri: str) -> dict[str, Any] | None:
    """How the sweep ended, or None while it has not."""
    record = storage.join(uri, OUTCOME)
    return _read(record) if storage.exists(record) else None


def _read(record: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_bytes(record))
    except ValueError as error:
        raise StorageError(_damaged(record, error)) from error
    if not isinstance(found, dict):
        raise StorageError(_damaged(record, "no JSON object"))
    return found


def _damaged(record: str, why: object) -> str:
    return f"{record} is damaged ({why}): restore it, or choose another --name"


def _json(record: Sweep | Trial) -> bytes:
    return json.dumps(asdict(record), indent=1, ensure_ascii=False).encode()
