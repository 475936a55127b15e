"""All checks before a run, in the order in which the run would fail."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import EffnetRayError
from effnet_ray.model import pretrained
from effnet_ray.placement import Placement
from effnet_ray.preflight.cluster import check_cluster
from effnet_ray.preflight.findings import Finding, run_check
from effnet_ray.preflight.inputs import check_inputs
from effnet_ray.preflight.permissions import check_places
from effnet_ray.preflight.working_dir import check_working_dir
from effnet_ray.recipe import MULTICLASS, Recipe
from effnet_ray.runtime import gpus
from effnet_ray.tracking import trackers as track
from effnet_ray.train import run_record
from effnet_ray.train.run_setup import (
    check_run_name,
    check_sync,
    find_run_uri,
    for_new_run,
    load_same_run,
)
from effnet_ray.variants import InputSpec


def quick_checks(
    data: str,
    runs: str,
    store: str,
    *,
    trackers: Sequence[str],
    single_writer: bool,
    submitted: bool,
) -> Iterator[Finding]:
    """The checks that every training job starts with: write access, trackers, working dir."""
    yield from check_places(data, runs, store, single_writer=single_writer)
    yield from _check_trackers(trackers)
    if submitted:
        yield from check_working_dir(Path.cwd(), submits=False)


def all_checks(
    recipe: Recipe,
    placement: Placement,
    *,
    data: str,
    runs: str,
    store: str,
    mirror: str | None,
    name: str | None,
    trackers: Sequence[str],
    single_writer: bool,
    submits: bool,
    connect: Callable[[Placement], object],
) -> Iterator[Finding]:
    """All checks. `connect` joins or starts Ray; `submits`: the working dir will be uploaded."""
    yield from check_places(data, runs, store, single_writer=single_writer)
    yield from check_inputs(recipe, data, mirror)
    yield run_check("run", lambda: _check_run(recipe, data, runs, name))
    yield from _check_trackers(trackers)
    yield from check_working_dir(Path.cwd(), submits=submits)
    placement = gpus.with_default_gpus(placement, connect)
    connect(placement)
    try:
        spec = pretrained.resolve(recipe).spec
    except EffnetRayError:  # `check_inputs` has reported it
        return
    yield run_check("recipe", lambda: _check_recipe(recipe, placement, spec, data))
    try:
        resolved = _resolved(recipe, placement, spec, data)
    except EffnetRayError:  # reported by the check of the recipe
        resolved = recipe.resolved(
            spec, workers=placement.worker_range[1], on_gpu=placement.on_gpu, task=MULTICLASS
        )
    yield from check_cluster(resolved, placement, [data, runs, store])


def _check_trackers(names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        yield run_check(f"tracker {name}", partial(track.check_tracker, name))


def _check_run(recipe: Recipe, data: str, runs: str, name: str | None) -> str:
    """Whether the run is new. Raises InputError for an invalid or taken name."""
    if name:
        check_run_name(name)
    manifest = manifests.load(storage.absolute(data))
    uri = find_run_uri(recipe, manifest, storage.absolute(runs), name)
    if not load_same_run(uri, recipe, manifest):
        return f"{uri} is new"
    finished = run_record.load_result(uri)
    return f"{uri} is finished: nothing to train" if finished else f"{uri} exists: resume it"


def _check_recipe(recipe: Recipe, placement: Placement, spec: InputSpec, data: str) -> str:
    """The task and batch layout. Raises RecipeError if they do not fit the data or the workers."""
    resolved = _resolved(recipe, placement, spec, data)
    check_sync(resolved, placement)
    batch = f"{resolved.lanes} micro-batches of {resolved.micro_batch} images per step"
    return f"{resolved.task}, {resolved.image_size} px, {batch}"


def _resolved(recipe: Recipe, placement: Placement, spec: InputSpec, data: str) -> Recipe:
    """The recipe of a new run. Raises InputError."""
    manifest = manifests.load(storage.absolute(data))
    return for_new_run(recipe, manifest, storage.absolute(data), placement.gpus).resolved(
        spec,
        workers=placement.worker_range[1],
        on_gpu=placement.on_gpu,
        bfloat16=gpus.have_bfloat16(placement),
        task=manifest.task,
    )
