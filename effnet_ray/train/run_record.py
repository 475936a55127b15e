"""A run's record in storage: its recipe and data (run.json) and its result (result.json).

A resumed run reads these and the checkpoints; it does not need Ray Train's own state.

    RUNS/NAME/run.json            written once, before the first step
    RUNS/NAME/checkpoints/*/      see `checkpoint`
    RUNS/NAME/audit/*.parquet     with --audit, see `step_log`
    RUNS/NAME/quarantine/*.parquet  images that could not be read, if any
    RUNS/NAME/result.json         written after the last epoch
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import safe_json, storage
from effnet_ray.errors import AlreadyExistsError, RecipeError, RunExistsError, StorageError
from effnet_ray.recipe import TRAINED, Recipe
from effnet_ray.recipe_rules import BATCH_SIZE
from effnet_ray.schema import from_dict
from effnet_ray.train.metric_definitions import EvalValues, Score
from effnet_ray.train.teacher import Teacher
from effnet_ray.variants import InputSpec

RUN = "run.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
AUDIT = "audit"
QUARANTINE = "quarantine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run trains; fixed before its first step. Field names are keys of run.json."""

    name: str
    recipe: Recipe
    """Resolved."""
    spec: InputSpec
    """The network's input."""
    classes: tuple[str, ...]
    data: str
    """URI of the data set when the run started."""
    fingerprint: str
    """Fingerprint of the data set."""
    weights: str
    """`none`, the name of a timm checkpoint, or the URI of a release."""
    weights_sha256: str
    """SHA-256 of the pretrained file; empty when training from scratch."""
    weights_head: int
    """Number of outputs of the pretrained file's head."""
    gpus: int = 1
    """GPUs of the first placement, which the default batch size follows."""
    teacher: Teacher | None = None
    """The release that it learns from, if the recipe has one."""
    averaged: tuple[str, ...] = ()
    """URIs of the checkpoints whose mean weights it has, of a run that `train.average` made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result(EvalValues):
    """The metrics of a finished run's best epoch, and what the run took.

    Field names are keys of result.json and of the JSON line.
    """

    run: str
    run_uri: str
    checkpoint: str
    """URI of the best checkpoint."""
    eval_top1: float
    eval_loss: float
    epochs: int
    steps: int
    resumed_from_step: int
    """0 for a run that was not interrupted."""
    train_images_per_s: float
    """Over the train steps since the workers last started."""
    seconds: float
    """Wall time of the call that finished the run."""
    quarantined: int
    """Images that could not be read in the last epoch."""
    device_seconds: float = 0.0
    """Number of workers times the seconds that they were held, over all calls; work that was lost
    and repeated counts once."""

    def summary(self, eval_images: int = 0) -> str:
        """The score of the best epoch, for people; with its confidence interval if the number of
        eval images is known."""
        score = Score.of(asdict(self))
        assert score is not None  # top-1 always has a value
        return score.metric.describe(score.value, eval_images)


def default_name(recipe: Recipe, fingerprint: str) -> str:
    """`<variant>-<8 hex digits of recipe and data>`: the same command is the same run."""
    settings = recipe.with_family.for_names | {"batch_size": recipe.batch_size or BATCH_SIZE}
    content = json.dumps([settings, fingerprint], sort_keys=True)
    return f"{recipe.variant}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def load(run_uri: str) -> Run | None:
    """The recorded run, or None."""
    uri = storage.join(run_uri, RUN)
    if not storage.exists(uri):
        return None
    with _readable(uri):
        record: dict[str, Any] = safe_json.parse(storage.read_bytes(uri))
        # A record without `head` is of a run that trained its head.
        record["recipe"] = from_dict(Recipe, {"head": TRAINED} | record["recipe"])
        record["spec"] = from_dict(InputSpec, record["spec"])
        if record.get("teacher"):
            record["teacher"] = Teacher.from_json(record["teacher"])
        return from_dict(Run, record)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Raises StorageError if the record at `uri` is malformed."""
    try:
        yield
    except (RecipeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{uri} is damaged, or was written by another version of effnet_ray ({error}): "
            "restore it from a copy, use that version, or choose another --name"
        ) from error


def create(run: Run, run_uri: str) -> None:
    """Write the record. Raises RunExistsError if another process was first."""
    record = asdict(run) | {"spec": run.spec.as_json()}
    if run.teacher:
        record["teacher"] = run.teacher.to_json()
    try:
        storage.write_bytes(storage.join(run_uri, RUN), _json(record), exclusive=True)
    except AlreadyExistsError as error:
        raise RunExistsError(
            f"run {run.name!r} was just started by another process: run the command again "
            "to join or resume it"
        ) from error


def check_same(recorded: Run, recipe: Recipe, fingerprint: str) -> None:
    """Raises RunExistsError if the recorded run has another recipe or other data."""
    if recorded.recipe.head_epochs is None:
        raise RunExistsError(
            f"run {recorded.name!r} was recorded by another version of this package: choose "
            "another --name, or continue with that version"
        )
    differences = recipe.differences(recorded.recipe)
    if differences:
        raise RunExistsError(
            f"run {recorded.name!r} exists with another recipe: got {differences}: choose "
            "another --name, or pass the recorded values"
        )
    if fingerprint != recorded.fingerprint:
        raise RunExistsError(
            f"run {recorded.name!r} exists with other data (fingerprint "
            f"{recorded.fingerprint[:8]}, got {fingerprint[:8]}): choose another --name"
        )


def write_result(result: Result) -> None:
    """Record that the run is finished."""
    storage.write_bytes(storage.join(result.run_uri, RESULT), _json(asdict(result)))


def load_result(run_uri: str) -> Result | None:
    """The recorded result, or None if the run is unfinished."""
    uri = storage.join(run_uri, RESULT)
    if not storage.exists(uri):
        return None
    with _readable(uri):
        return from_dict(Result, safe_json.parse(storage.read_bytes(uri)))


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False).encode()
