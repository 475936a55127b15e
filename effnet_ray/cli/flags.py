"""What the jobs that train have in common: their flags, and where these get their defaults."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import tyro

from effnet_ray import storage
from effnet_ray.cli.terminal import Terminal
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import RecipeError
from effnet_ray.packing.sample import pack_sample
from effnet_ray.placement import Placement
from effnet_ray.publish.test_score import Scoring
from effnet_ray.recipe import Recipe
from effnet_ray.release.store import ModelStore
from effnet_ray.runtime import session
from effnet_ray.schema import from_dict
from effnet_ray.variants import FAMILIES

Connect = Callable[[Placement], None]
HOME = "~/effnet-ray"

SAMPLE = {"weights": "none", "flip": 0.0, "crop_scale": 0.7, "crop_ratio": 1.1}
"""The sample data are digits: no download to start from, and a mirrored 2 is no 2."""

LOCAL = {
    **SAMPLE,
    "image_size": 64,
    "epochs": 10,
    "batch_size": 32,
    "lr": 3e-3,
    "dropout": 0.1,
    "drop_path": 0.0,
    "label_smoothing": 0.05,
}
"""Found by trying on the sample data: eval top-1 0.97 to 0.98."""


@dataclass(frozen=True)
class LocationFlags:
    """URIs: s3://bucket/prefix or a local path."""

    data: str = ""
    """The packed data set. Default: EFFNET_DATA, else the built-in sample data."""
    store: str = ""
    """Where releases go. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    runs: str = ""
    """Where runs keep checkpoints and records. Default: EFFNET_RUNS, else ~/effnet-ray/runs."""
    single_writer: bool = False
    """Publish although the store's server ignores conditional writes: never two jobs at once.
    Default: EFFNET_SINGLE_WRITER."""
    weights_mirror: str = ""
    """Folder of <timm name>.safetensors used instead of the hub. Default: EFFNET_WEIGHTS."""


@dataclass(frozen=True)
class TrainingFlags:
    """What all jobs that train are told."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    placement: tyro.conf.OmitArgPrefixes[Placement] = field(default_factory=Placement)
    where: tyro.conf.OmitArgPrefixes[LocationFlags] = field(default_factory=LocationFlags)
    recipe_file: Annotated[str, tyro.conf.arg(name="recipe")] = ""
    """A recipe as JSON (a release's recipe.json will do); flags override its fields."""
    name: str = ""
    """Default: made from recipe and data, so that the same command resumes what is unfinished."""
    local: bool = False
    """Run on this machine alone, small: sample data at 64 px, a sweep at 48, if flags do not say
    otherwise."""
    tracker: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """mlflow, tensorboard, or both with a comma between: tell these of the run too. MLflow's own
    environment says where its server is (MLFLOW_TRACKING_URI)."""
    test_split: bool = True
    """Score the data's test split, if it has one, when what was trained is released."""
    verbose: bool = False
    """Show Ray's own logs."""


Job = TypeVar("Job", bound=TrainingFlags)


def parse(
    job: type[Job], argv: Sequence[str], local: Mapping[str, Any] = LOCAL, **defaults: Any
) -> Job:
    """Parse twice: once to see what the defaults should be, once with them.

    `local` are the recipe's with `--local`, `defaults` those of the job's own fields.
    """
    from_env = job(**environment(), **defaults)
    first = tyro.cli(job, args=argv, default=from_env)
    if first.recipe_file:
        recipe = _recipe_file(first.recipe_file)
    else:
        settings = local if first.local else SAMPLE if not first.where.data else {}
        recipe = from_dict(Recipe, settings)
    return tyro.cli(job, args=argv, default=replace(from_env, recipe=recipe))


def _recipe_file(uri: str) -> Recipe:
    try:
        return from_dict(Recipe, json.loads(storage.read_bytes(storage.absolute(uri))))
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"{uri} is no recipe ({error}): expected a JSON object of its fields") \
            from error  # fmt: skip


def environment() -> dict[str, Any]:
    """Defaults that a cluster's files set."""
    get = os.environ.get
    placement: dict[str, Any] = {}
    if get("EFFNET_WORKERS"):
        placement["workers"] = get("EFFNET_WORKERS")
    gpus = get("EFFNET_GPUS_PER_WORKER")
    if gpus:
        try:
            placement["gpus_per_worker"] = float(gpus)
        except ValueError:
            raise RecipeError(f"EFFNET_GPUS_PER_WORKER is {gpus!r}: expected a number") from None
    return {
        "placement": Placement(**placement),
        "where": LocationFlags(
            data=get("EFFNET_DATA", ""),
            store=store_from_environment(),
            single_writer=single_writer_from_environment(),
            runs=get("EFFNET_RUNS", f"{HOME}/runs"),
            weights_mirror=get("EFFNET_WEIGHTS", ""),
        ),
    }


def store_from_environment() -> str:
    """Where releases are, if no flag says so."""
    return os.environ.get("EFFNET_STORE", f"{HOME}/store")


def single_writer_from_environment() -> bool:
    """Whether the cluster's files, or a person, answer for it that one job publishes at a time."""
    said = os.environ.get("EFFNET_SINGLE_WRITER", "").lower()
    if said not in ("", "0", "false", "1", "true"):
        raise RecipeError(f"EFFNET_SINGLE_WRITER is {said!r}: expected 1 or 0")
    return said in ("1", "true")


def workers_from_environment() -> bool:
    """Whether the cluster's files set the number of workers."""
    return bool(os.environ.get("EFFNET_WORKERS"))


def connect_as(
    people: Terminal, *, local: bool, verbose: bool, dashboard: bool = False
) -> Connect:
    """Joins or starts Ray, unless that is done, and says which; see `session.connect`."""

    def connect(placement: Placement) -> None:
        if not session.is_connected():
            where = session.connect(placement, local=local, verbose=verbose, dashboard=dashboard)
            people.say(f"Ray: {where}")

    return connect


def scoring(
    flags: TrainingFlags, data: str, people: Terminal, connect: Connect, placement: Placement
) -> Scoring | None:
    """Who scores the test split; None where nobody is to."""
    return Scoring(data, placement, connect, people.scored) if flags.test_split else None


def sample(people: Terminal) -> str:
    """The sample data set, packed on first use."""
    out = storage.absolute(f"{HOME}/sample-data")
    if not storage.exists(storage.join(out, manifests.NAME)):
        people.say(f"packing the sample data (1,797 handwritten digits) into {out}")
        pack_sample(out)
    people.say(f"no --data: using the sample data in {out}")
    return out


def recipe(flags: TrainingFlags) -> Recipe:
    """The recipe, a release's name replaced by its URI, verified."""
    wanted = flags.recipe.weights
    if "/" in wanted or wanted in (*FAMILIES, "best", "none"):
        return flags.recipe
    store = ModelStore(storage.absolute(flags.where.store))
    if "@" in wanted or wanted in store.models():
        return replace(flags.recipe, weights=store.find(wanted).uri)
    return flags.recipe
