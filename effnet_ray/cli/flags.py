"""The flags that all training jobs share, and where their defaults come from."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from effnet_ray import safe_json
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import InputError, RecipeError, quote
from effnet_ray.placement import Placement, Workers, parse_worker_range
from effnet_ray.publish.options import ReleaseOptions
from effnet_ray.recipe import Recipe
from effnet_ray.recipe_rules import SYNONYMS
from effnet_ray.schema import describe_types, from_dict
from effnet_ray.variants import FAMILIES

if TYPE_CHECKING:
    from effnet_ray.publish.test_score import Scoring
    from effnet_ray.release.store import ModelStore

Connect = Callable[[Placement], None]
HOME = "~/effnet-ray"
HELP = {"-h", "--help"}
FIELDS = "an object of recipe fields"

SAMPLE = {"weights": "none", "flip": 0.0, "crop_scale": 0.7, "crop_ratio": 1.1}
"""Recipe defaults for the sample data: no download, and no mirror images, since a mirrored digit
is not a digit."""

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
"""Recipe defaults with `--local`. Chosen by experiment on the sample data: eval top-1 0.97 to
0.98."""


@dataclass(frozen=True)
class LocationFlags:
    """URIs of data, runs and releases: s3://… or local paths."""

    data: str = ""
    """The packed data set; or images that `pack` takes as --source, which are packed below
    RUNS/packed first and found there again. Default: EFFNET_DATA, else the built-in sample data,
    with the defaults --weights none --flip 0 --crop-scale 0.7 --crop-ratio 1.1."""
    store: str = ""
    """The model store, where releases are published. Default: EFFNET_STORE, else
    ~/effnet-ray/store."""
    runs: str = ""
    """Where runs keep checkpoints and records. Default: EFFNET_RUNS, else ~/effnet-ray/runs."""
    single_writer: bool = False
    """For a store whose server ignores conditional writes: publish anyway. You guarantee that only
    one job publishes at a time. Default: EFFNET_SINGLE_WRITER, else off."""
    weights_mirror: str = ""
    """Folder with <timm name>.safetensors files, used instead of the Hugging Face hub. Default:
    EFFNET_WEIGHTS, else the hub."""

    @property
    def model_store(self) -> "ModelStore":
        """The model store. Raises StorageError for an unknown scheme."""
        from effnet_ray import storage
        from effnet_ray.release.store import ModelStore

        return ModelStore(storage.absolute(self.store), self.single_writer)


@dataclass(frozen=True)
class TrainingFlags:
    """The flags of all training jobs."""

    recipe: Annotated[tyro.conf.OmitArgPrefixes[Recipe], tyro.conf.arg(name="Recipe")] = field(
        default_factory=Recipe
    )
    placement: Annotated[tyro.conf.OmitArgPrefixes[Placement], tyro.conf.arg(name="Cluster")] = (
        field(default_factory=Placement)
    )
    location: Annotated[
        tyro.conf.OmitArgPrefixes[LocationFlags], tyro.conf.arg(name="Storage")
    ] = field(default_factory=LocationFlags)
    releasing: Annotated[
        tyro.conf.OmitArgPrefixes[ReleaseOptions], tyro.conf.arg(name="Release")
    ] = field(default_factory=ReleaseOptions)
    recipe_file: Annotated[str, tyro.conf.arg(name="recipe")] = ""
    """URI of a JSON file with recipe fields, such as a release's recipe.json. Flags override its
    fields."""
    name: str = ""
    """Name of the run or sweep. Default: derived from recipe and data, so that the same command
    resumes an unfinished run."""
    local: bool = False
    """Use this machine only, with defaults for the sample data: small images, weights none and
    further settings, which `--local --help` shows."""
    tracker: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Log the run to mlflow, tensorboard, or both, separated by a comma. MLflow reads its own
    environment variables, such as MLFLOW_TRACKING_URI."""
    test_split: bool = True
    """Score the released model on the test split, if the data set has one."""
    verbose: bool = False
    """Show Ray's own logs."""

    def connector(self, terminal: Terminal, *, dashboard: bool = False) -> Connect:
        """A function that joins or starts Ray; see `connector`."""
        return connector(terminal, local=self.local, verbose=self.verbose, dashboard=dashboard)

    def test_scoring(
        self, data: str, terminal: Terminal, placement: Placement
    ) -> "Scoring | None":
        """How to score the test split; None with `--no-test-split`."""
        from effnet_ray.publish.test_score import Scoring

        if not self.test_split:
            return None
        return Scoring(data, placement, self.connector(terminal), terminal.test_progress)

    def resolved_recipe(self) -> Recipe:
        """The recipe with the names of releases, as weights or teacher, replaced by their verified
        URIs."""
        recipe, store = self.recipe, self.location.model_store
        if recipe.teacher and "/" not in recipe.teacher:
            recipe = replace(recipe, teacher=store.find(recipe.teacher).uri)
        weights = recipe.weights
        if "/" in weights or weights in (*FAMILIES, "best", "none"):
            return recipe
        if "@" in weights or weights in store.models():
            return replace(recipe, weights=store.find(weights).uri)
        return recipe


JobFlags = TypeVar("JobFlags", bound=TrainingFlags)


def parse_training(
    flags: type[JobFlags], argv: Sequence[str], local: Mapping[str, Any] = LOCAL, **defaults: Any
) -> JobFlags:
    """Parse the flags of a training job.

    `local` are recipe defaults with `--local`; `defaults` are those of the job's own fields.
    The first pass finds the flags that change the recipe's defaults, the second one uses them.
    Help shows the defaults for your own data, or those with `--local`.
    """
    _refuse_synonyms(argv)
    placement = Placement(**placement_in_environment())
    from_environment = flags(placement=placement, location=default_location(), **defaults)
    if HELP & set(argv):
        recipe = from_dict(Recipe, local if "--local" in argv else {})
    else:
        first = parse(flags, argv, from_environment)
        recipe = _default_recipe(first, local)
    return parse(flags, argv, replace(from_environment, recipe=recipe))


def _default_recipe(flags: TrainingFlags, local: Mapping[str, Any]) -> Recipe:
    """The recipe that these flags start from."""
    if flags.recipe_file:
        return _read_recipe(flags.recipe_file)
    if flags.local:
        return from_dict(Recipe, local)
    return from_dict(Recipe, {} if flags.location.data else SAMPLE)


def _read_recipe(uri: str) -> Recipe:
    from effnet_ray import storage

    try:
        content = safe_json.parse(storage.read_bytes(storage.absolute(uri)))
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{uri} is not JSON (line {error.lineno}, column {error.colno}): expected {FIELDS}"
        ) from error
    except ValueError as error:
        raise RecipeError(f"{uri} is not JSON ({quote(error)}): expected {FIELDS}") from error
    if not isinstance(content, dict):
        found = describe_types([type(content)])
        raise RecipeError(f"{uri} is {found}, in JSON: expected {FIELDS}")
    try:
        return from_dict(Recipe, content, SYNONYMS)
    except InputError as error:
        raise type(error)(f"{uri}: {error}") from error


def _refuse_synonyms(argv: Sequence[str]) -> None:
    """Raise RecipeError for the usual name of a recipe field, where the flag has another."""
    for word in argv:
        flag = word.partition("=")[0]
        field = SYNONYMS.get(flag.removeprefix("--").replace("-", "_"))
        if flag.startswith("--") and field:
            raise RecipeError(
                f"there is no flag {flag}: did you mean --{field.replace('_', '-')}?"
            )


def placement_in_environment() -> dict[str, Any]:
    """The placement's fields that EFFNET_WORKERS and EFFNET_GPUS_PER_WORKER set."""
    options: dict[str, Any] = {}
    if workers_in_environment():
        options["workers"] = os.environ["EFFNET_WORKERS"]
        parse_worker_range(options["workers"], "EFFNET_WORKERS")
    gpus = os.environ.get("EFFNET_GPUS_PER_WORKER")
    if gpus:
        try:
            options["gpus_per_worker"] = float(gpus)
        except ValueError:
            raise RecipeError(f"EFFNET_GPUS_PER_WORKER is {gpus!r}: expected a number") from None
    return options


def default_workers() -> Workers:
    """The workers that EFFNET_WORKERS and EFFNET_GPUS_PER_WORKER set."""
    return Workers(**placement_in_environment())


def workers_in_environment() -> bool:
    """Whether EFFNET_WORKERS is set."""
    return bool(os.environ.get("EFFNET_WORKERS"))


def default_location() -> LocationFlags:
    """The URIs that EFFNET_DATA, EFFNET_STORE, EFFNET_RUNS and EFFNET_WEIGHTS set."""
    return LocationFlags(
        data=default_data(),
        store=default_store(),
        single_writer=default_single_writer(),
        runs=default_runs(),
        weights_mirror=os.environ.get("EFFNET_WEIGHTS", ""),
    )


def default_data() -> str:
    """EFFNET_DATA; empty if it is not set."""
    return os.environ.get("EFFNET_DATA", "")


def default_runs() -> str:
    """EFFNET_RUNS, else ~/effnet-ray/runs."""
    return os.environ.get("EFFNET_RUNS") or f"{HOME}/runs"


def default_store() -> str:
    """EFFNET_STORE, else ~/effnet-ray/store."""
    return os.environ.get("EFFNET_STORE") or f"{HOME}/store"


def default_single_writer() -> bool:
    """Whether EFFNET_SINGLE_WRITER promises that one job publishes at a time."""
    value = os.environ.get("EFFNET_SINGLE_WRITER", "").lower()
    if value not in ("", "0", "false", "1", "true"):
        raise RecipeError(f"EFFNET_SINGLE_WRITER is {value!r}: expected 1 or 0")
    return value in ("1", "true")


def connector(
    terminal: Terminal, *, local: bool, verbose: bool, dashboard: bool = False
) -> Connect:
    """A function that joins or starts Ray once, and prints which; see `session.connect`."""

    def connect(placement: Placement) -> None:
        from effnet_ray.runtime import session

        if not session.is_connected():
            cluster = session.connect(placement, local=local, verbose=verbose, dashboard=dashboard)
            terminal.print(f"Ray: {cluster}")

    return connect
