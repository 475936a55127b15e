"""A sweep's record in storage: its definition, the state of each trial, its outcome.

A sweep resumes from these files and its trials' runs alone; Ray Tune's own state is disposable.

    RUNS/NAME/sweep.json          written once, before the first trial
    RUNS/NAME/trials/NNN.json     written when a trial starts, reports and ends
    RUNS/NAME/runs/NAME-NNN-VARIANT/  the trial's run (`train.run_record`)
    RUNS/NAME/report.html         written at the end, with outcome.json
    RUNS/NAME/outcome.json
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from effnet_ray import safe_json, storage
from effnet_ray.errors import AlreadyExistsError, RecipeError, RunExistsError, StorageError
from effnet_ray.recipe import TRAINED, Recipe
from effnet_ray.schema import from_dict
from effnet_ray.sweep.space import Settings
from effnet_ray.variants import variant

SWEEP, OUTCOME, REPORT = "sweep.json", "outcome.json", "report.html"
TRIALS, RUNS = "trials", "runs"

RUNNING, FINISHED, STOPPED, FAILED, SKIPPED = "running", "finished", "stopped", "failed", "skipped"
"""States of a trial: stopped at a rung or by the budget; skipped if the budget has no room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The definition of a sweep, fixed before its first trial."""

    name: str
    recipe: Recipe
    """What all trials share."""
    variants: tuple[str, ...]
    trials: int
    space: dict[str, Any]
    """Field → domain, in the notation of `space`."""
    searcher: str
    """random or tpe."""
    budget: float | None
    """Device-seconds the sweep may spend."""
    data: str
    """URI of the data set when the sweep started."""
    fingerprint: str
    """The data set's fingerprint."""
    side: float | None = None
    """Median of the images' shorter sides, px, which the default image size follows."""

    def trial_recipe(self, variant: str, settings: Settings) -> Recipe:
        """The recipe of a trial."""
        return replace(self.recipe, variant=variant, **settings).for_sides(self.side)

    def run_name(self, number: int, variant: str) -> str:
        """The name of a trial's run."""
        return f"{self.name}-{number:03d}-{variant}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPoint:
    """One evaluation of a trial."""

    reached: float
    """Share of the trial's full cost done, above 0, up to 1."""
    eval_top1: float
    device_seconds: float
    """Device-seconds that the trial has spent so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One sampled Recipe and its result so far."""

    number: int
    variant: str
    settings: Settings
    state: str
    run: str
    """Name of its run."""
    curve: tuple[TrialPoint, ...] = ()
    reason: str = ""
    """Why it failed."""

    @property
    def over(self) -> bool:
        """Whether it has ended, or was skipped."""
        return self.state != RUNNING

    @property
    def eval_top1(self) -> float:
        """The best eval top-1 so far, 0 to 1."""
        return max((point.eval_top1 for point in self.curve), default=0.0)

    @property
    def progress(self) -> float:
        """Share of its full cost done, 0 to 1."""
        return self.curve[-1].reached if self.curve else 0.0

    @property
    def device_seconds(self) -> float:
        """The reported device-seconds so far."""
        return self.curve[-1].device_seconds if self.curve else 0.0


def with_common_family(recipe: Recipe, variants: Sequence[str]) -> Recipe:
    """The recipe with the family of the `best` weights if it is the same for all variants.

    Otherwise it keeps `best`, and each trial's run records its own family.
    """
    families = {variant(name).best_family for name in (recipe.variant, *variants)}
    return recipe.with_family if len(families) == 1 else recipe


def create(sweep: Sweep, uri: str) -> None:
    """Record the sweep, or check that it is the recorded one.

    Raises RunExistsError where the name belongs to a sweep with another definition.
    """
    record = storage.join(uri, SWEEP)
    try:
        storage.write_bytes(record, _json(sweep), exclusive=True)
    except AlreadyExistsError:
        recorded = _read(record)
        if isinstance(recorded.get("recipe"), dict):
            # Fields that were added since then had their defaults, and the head was trained.
            recorded["recipe"] = asdict(Recipe()) | {"head": TRAINED} | recorded["recipe"]
        differences = _differences(json.loads(_json(sweep)), recorded)
        if differences:
            raise RunExistsError(
                f"sweep {sweep.name!r} exists with other settings: {differences}: choose another "
                "--name, or pass the recorded values"
            ) from None


def recorded_data(uri: str) -> str:
    """URI of the data set of the sweep in a folder; empty if there is none."""
    record = storage.join(uri, SWEEP)
    return str(_read(record).get("data", "")) if storage.exists(record) else ""


def as_recorded(sweep: Sweep, uri: str, recipe: Recipe, space: Mapping[str, Any] | None) -> Sweep:
    """The sweep with the defaults that its record has, where `recipe` and `space` are unset.

    Defaults may have changed since then: the space, batch size and rate; records of before had
    neither `side` nor the recipe's `head`.
    """
    record = storage.join(uri, SWEEP)
    content = _read(record) if storage.exists(record) else {}
    recorded = content.get("recipe")
    if not isinstance(recorded, dict):
        return sweep
    recorded.setdefault("head", TRAINED)
    unset = [name for name in ("batch_size", "lr", "head") if getattr(recipe, name) is None]
    kept: dict[str, Any] = {name: recorded.get(name) for name in unset}
    try:
        recorded_space = content.get("space", {})
        same_fields = recorded_space.keys() == sweep.space.keys()  # a flag may fix one of them
        return replace(
            sweep,
            recipe=replace(sweep.recipe, **kept),
            space=recorded_space if space is None and same_fields else sweep.space,
            side=None if content.get("side") is None else float(content["side"]),
        )
    except (RecipeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise StorageError(_damaged(record, error)) from error


def _differences(new: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """The fields that differ; the data set may have moved to another URI."""
    return ", ".join(
        f"{name} (recorded {recorded.get(name)!r}, requested {value!r})"
        for name, value in new.items()
        if name != "data" and value != recorded.get(name)
    )


def write_trial(trial: Trial, uri: str) -> None:
    """Record a trial's state so far."""
    storage.write_bytes(storage.join(uri, TRIALS, f"{trial.number:03d}.json"), _json(trial))


def load_trials(uri: str) -> dict[int, Trial]:
    """The recorded trials by number. Raises StorageError where a record is damaged."""
    trials = {}
    for file in storage.sizes(storage.join(uri, TRIALS)):
        record = storage.join(uri, TRIALS, file)
        content = _read(record)
        try:
            content["curve"] = tuple(from_dict(TrialPoint, point) for point in content["curve"])
            trial = from_dict(Trial, content)
        except (RecipeError, LookupError, TypeError) as error:
            raise StorageError(_damaged(record, error)) from error
        trials[trial.number] = trial
    return trials


def write_outcome(outcome: Mapping[str, Any], uri: str) -> None:
    """Record that the sweep has ended, and its outcome."""
    storage.write_bytes(
        storage.join(uri, OUTCOME), json.dumps(outcome, indent=1, ensure_ascii=False).encode()
    )


def has_outcome(uri: str) -> bool:
    """Whether the sweep has ended. Raises StorageError where its outcome.json is damaged."""
    record = storage.join(uri, OUTCOME)
    return storage.exists(record) and bool(_read(record))


def _read(record: str) -> dict[str, Any]:
    try:
        content = safe_json.parse(storage.read_bytes(record))
    except ValueError as error:
        raise StorageError(_damaged(record, error)) from error
    if not isinstance(content, dict):
        raise StorageError(_damaged(record, "not a JSON object"))
    return content


def _damaged(record: str, reason: object) -> str:
    return (
        f"{record} is damaged ({reason}): restore the file from a backup, or start the sweep "
        "again under another --name"
    )


def _json(record: Sweep | Trial) -> bytes:
    return json.dumps(asdict(record), indent=1, ensure_ascii=False).encode()
