"""The jobs' flags, made by tyro from the typed dataclasses, and what each job does.

Precedence: a flag, else the recipe file, else `--local`'s or the sample data's settings, else
`EFFNET_*` in the environment, else the field's default. People's output goes to stderr; the last
line of stdout is one JSON object. Exit 2 for a person's mistake, 1 for a run that failed.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from effnet_ray import storage
from effnet_ray.console import People
from effnet_ray.data import manifest as manifests, report, spread
from effnet_ray.data.pack import Packing, pack
from effnet_ray.data.sample import pack_sample
from effnet_ray.data.sources import Each
from effnet_ray.errors import EffnetRayError, RecipeError
from effnet_ray.recipe import Placement, Recipe, from_dict
from effnet_ray.store.release_run import release_run
from effnet_ray.store.releases import REFERENCE, ModelStore, Release
from effnet_ray.train import session
from effnet_ray.train.finetune import finetune
from effnet_ray.train.record import Result

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
class Where:
    """URIs: s3://bucket/prefix or a local path."""

    data: str = ""
    """The packed data set. Default: EFFNET_DATA, else the built-in sample data."""
    store: str = ""
    """Where releases go. Default: EFFNET_STORE, else ~/effnet-ray/store."""
    runs: str = ""
    """Where runs keep checkpoints and records. Default: EFFNET_RUNS, else ~/effnet-ray/runs."""
    weights_mirror: str = ""
    """Folder of <timm name>.safetensors used instead of the hub. Default: EFFNET_WEIGHTS."""


@dataclass(frozen=True)
class Finetune:
    """Fine-tune an EfficientNet and publish the best epoch as a release."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    placement: tyro.conf.OmitArgPrefixes[Placement] = field(default_factory=Placement)
    where: tyro.conf.OmitArgPrefixes[Where] = field(default_factory=Where)
    recipe_file: Annotated[str, tyro.conf.arg(name="recipe")] = ""
    """A recipe as JSON (a release's recipe.json will do); flags override its fields."""
    name: str = ""
    """The run's name. Default: <variant>-<8 hex of recipe and data>, so that the same command
    resumes an unfinished run."""
    local: bool = False
    """Run on this machine alone, small: sample data at 64 px unless flags say otherwise."""
    verbose: bool = False
    """Show Ray's own logs."""


@dataclass(frozen=True)
class Pack:
    """Pack labelled images into Parquet shards and a manifest.

    The source is a folder of class folders (also below train/, val/ and test/), a CSV, TSV or
    Parquet table of paths and labels, Parquet in Hugging Face's image layout, or WebDataset tars.
    Packing again continues what was interrupted.
    """

    source: str
    """URI of the folder or table."""
    out: str
    """URI of the data set to write."""
    packing: tyro.conf.OmitArgPrefixes[Packing] = field(default_factory=Packing)
    verbose: bool = False
    """Show Ray's own logs."""


def finetune_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/finetune.py`."""
    flags = _finetune_flags(argv)
    where = flags.where
    with People() as people:
        data = where.data or _sample(people)
        if flags.recipe.weights == "none":
            people.say("training from scratch: no pretrained weights (--weights none)")

        def connect(placement: Placement) -> None:
            people.say(
                "Ray: " + session.connect(placement, local=flags.local, verbose=flags.verbose)
            )

        result = finetune(
            replace(flags.recipe, weights=_weights(flags.recipe.weights, where.store)),
            flags.placement,
            data,
            runs=where.runs,
            name=flags.name or None,
            mirror=where.weights_mirror or None,
            hear=people.hear,
            connect=connect,
        )
        if not people.trained:
            people.say(f"run {result.run!r} has finished already: reported, not redone")
        release = release_run(result, where.store)
        _summary(people, result, release, data)
    return {
        **asdict(result),
        "release": release.reference,
        "release_uri": release.uri,
    }


def _summary(people: People, result: Result, release: Release, data: str) -> None:
    people.table(
        f"{release.reference}: eval top-1 {result.eval_top1:.2%}",
        {
            "release": release.uri,
            "run": result.run_uri,
            "data": data,
            "trained": f"{result.epochs} epochs, {result.steps} steps, "
            f"{result.train_images_per_s:,.1f} images/s, {result.seconds:.0f} s",
            "resume": "run the same command again: a finished run is reported, not redone",
            "load": f'timm.create_model("local-dir:{release.uri}", pretrained=True)',
        },
    )


def _finetune_flags(argv: Sequence[str]) -> Finetune:
    """Parse twice: once to see what the defaults should be, once with them."""
    from_env = _environment()
    first = tyro.cli(Finetune, args=argv, default=from_env)
    recipe = first.recipe if not first.recipe_file else _recipe_file(first.recipe_file)
    defaults = replace(from_env, recipe=recipe)
    if not first.recipe_file:
        settings = LOCAL if first.local else SAMPLE if not first.where.data else {}
        defaults = replace(from_env, recipe=from_dict(Recipe, settings))
    return tyro.cli(Finetune, args=argv, default=defaults)


def _recipe_file(uri: str) -> Recipe:
    try:
        return from_dict(Recipe, json.loads(storage.read_bytes(storage.absolute(uri))))
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"{uri} is no recipe ({error}): expected a JSON object of its fields") \
            from error  # fmt: skip


def _environment() -> Finetune:
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
    return Finetune(
        placement=Placement(**placement),
        where=Where(
            data=get("EFFNET_DATA", ""),
            store=get("EFFNET_STORE", f"{HOME}/store"),
            runs=get("EFFNET_RUNS", f"{HOME}/runs"),
            weights_mirror=get("EFFNET_WEIGHTS", ""),
        ),
    )


def _sample(people: People) -> str:
    """The sample data set, packed on first use."""
    out = storage.absolute(f"{HOME}/sample-data")
    if not storage.exists(storage.join(out, manifests.NAME)):
        people.say(f"packing the sample data (1,797 handwritten digits) into {out}")
        pack_sample(out)
    people.say(f"no --data: using the sample data in {out}")
    return out


def _weights(wanted: str, store: str) -> str:
    """A release's reference becomes its URI, verified; everything else stays."""
    if REFERENCE.fullmatch(wanted):
        return ModelStore(storage.absolute(store)).find(wanted).uri
    return wanted


def pack_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/pack.py`."""
    flags = tyro.cli(Pack, args=argv)
    out = storage.absolute(flags.out)
    with People() as people:
        each = _each([storage.absolute(flags.source), out], people, verbose=flags.verbose)
        manifest = pack(flags.source, out, flags.packing, progress=people.packed, each=each)
        if flags.packing.in_place:
            people.say(f"{storage.join(out, manifests.NAME)} written, the shards left as they are")
        else:
            people.data_set(manifest, report.load(out), out)
    return {
        "manifest": storage.join(out, manifests.NAME),
        "fingerprint": manifest.fingerprint,
        "images": manifest.images,
        "classes": list(manifest.classes),
        "quarantined": manifest.quarantined,
    }


def _each(uris: Sequence[str], people: People, *, verbose: bool) -> Each:
    """All over the cluster that the job was submitted to; else here, where threads are enough."""
    if not session.submitted():
        return map
    people.say("Ray: " + session.connect(Placement(), local=False, verbose=verbose))
    session.check_reach(uris)
    return spread.each


def main(job: Callable[[Sequence[str]], dict[str, Any]], argv: Sequence[str] | None = None) -> int:
    """Run a job: JSON on stdout's last line, a sentence on stderr where it cannot be done."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # The hub's client warns about its own retries; our sentence says what it comes to.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        answer = job(arguments)
    except EffnetRayError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    print(json.dumps({name: _json(value) for name, value in answer.items()}), flush=True)
    return 0


def _json(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
