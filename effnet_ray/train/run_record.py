"""A run's own record in storage: what it is (run.json), and how it ended (result.json).

Resuming reads these and the checkpoints, nothing else: Ray's run state is disposable.

    RUNS/NAME/run.json            written once, before the first step
    RUNS/NAME/checkpoints/*/      see `checkpoint`
    RUNS/NAME/audit/*.parquet     with --audit
    RUNS/NAME/quarantine/*.parquet  images that could not be read, if any
    RUNS/NAME/result.json         written after the last epoch
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, RecipeError, RunExistsError, StorageError
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict
from effnet_ray.train.metric_definitions import EVAL_MAP, EVAL_TOP1
from effnet_ray.variants import InputSpec

RUN = "run.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
AUDIT = "audit"
QUARANTINE = "quarantine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run is: fixed before its first step."""

    name: str
    recipe: Recipe
    """Settled."""
    spec: InputSpec
    """What the network is shown."""
    classes: tuple[str, ...]
    data: str
    """URI of the data set when the run began."""
    fingerprint: str
    """Of the data set."""
    weights: str
    """`none`, timm's name of the checkpoint, or the URI of a release."""
    weights_sha256: str
    """Of the pretrained file; empty from scratch."""
    weights_head: int
    """Outputs of the pretrained file's head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How a run ended: the figures of its best epoch, and what the run took."""

    run: str
    run_uri: str
    checkpoint: str
    """URI of the best checkpoint."""
    eval_top1: float
    eval_top5: float
    eval_loss: float
    epochs: int
    steps: int
    resumed_from_step: int
    """0 for a run that never stopped."""
    train_images_per_s: float
    """Over the train steps since the run last started."""
    seconds: float
    """Wall time of the call that ended the run."""
    quarantined: int
    """Images that could not be read, per epoch."""
    device_seconds: float = 0.0
    """Workers times the seconds that they were held, over all calls; work that was lost and done
    again counts once."""
    eval_map: float | None = None
    """Mean average precision, where images may have several classes."""

    @property
    def summary(self) -> str:
        """The score of the best epoch, for people."""
        if self.eval_map is not None:
            return EVAL_MAP.describe(self.eval_map)
        return EVAL_TOP1.describe(self.eval_top1)


def default_name(recipe: Recipe, fingerprint: str) -> str:
    """`<variant>-<8 hex of recipe and data>`: the same command means the same run."""
    content = json.dumps([asdict(recipe), fingerprint], sort_keys=True)
    return f"{recipe.variant}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def load(run_uri: str) -> Run | None:
    """The run's record, or None where there is none."""
    uri = storage.join(run_uri, RUN)
    if not storage.exists(uri):
        return None
    with _readable(uri):
        record: dict[str, Any] = json.loads(storage.read_bytes(uri))
        record["recipe"] = from_dict(Recipe, record["recipe"])
        record["spec"] = from_dict(InputSpec, record["spec"])
        return from_dict(Run, record)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Say of a record that cannot be read what to do about it."""
    try:
        yield
    except (RecipeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{uri} is damaged ({error}): restore it, or choose another --name"
        ) from error


def create(run: Run, run_uri: str) -> None:
    """Write the record. Raises RunExistsError if another driver was first."""
    try:
        storage.write_bytes(storage.join(run_uri, RUN), _json(run), exclusive=True)
    except AlreadyExistsError as error:
        raise RunExistsError(
            f"run {run.name!r} was begun by another driver at this moment: run the command again "
            "to join or resume it"
        ) from error


def check_same(found: Run, recipe: Recipe, fingerprint: str) -> None:
    """Raises RunExistsError where a recorded run is not the one that is asked for."""
    if found.recipe.head_epochs is None:
        raise RunExistsError(
            f"run {found.name!r} was recorded by another version of this package: choose another "
            "--name, or go on with that version"
        )
    if not recipe.agrees_with(found.recipe):
        raise RunExistsError(
            f"run {found.name!r} exists with another recipe: asked for "
            f"{recipe.differences(found.recipe)}: choose another --name, or the recorded values"
        )
    if fingerprint != found.fingerprint:
        raise RunExistsError(
            f"run {found.name!r} exists with other data (fingerprint {found.fingerprint[:8]}, "
            f"asked for {fingerprint[:8]}): choose another --name"
        )


def write_result(result: Result) -> None:
    """Record that the run has ended."""
    storage.write_bytes(storage.join(result.run_uri, RESULT), _json(result))


def load_result(run_uri: str) -> Result | None:
    """How the run ended, or None while it has not."""
    uri = storage.join(run_uri, RESULT)
    if not storage.exists(uri):
        return None
    with _readable(uri):
        return from_dict(Result, json.loads(storage.read_bytes(uri)))


def _json(record: Run | Result) -> bytes:
    return json.dumps(asdict(record), indent=1, ensure_ascii=False).encode()
