"""All that can be looked at before a run, in the order in which it would fail."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import EffnetRayError
from effnet_ray.model import pretrained
from effnet_ray.placement import Placement
from effnet_ray.preflight.cluster import cluster
from effnet_ray.preflight.findings import Finding, run_check
from effnet_ray.preflight.inputs import inputs
from effnet_ray.preflight.permissions import check_places
from effnet_ray.preflight.working_dir import working_dir
from effnet_ray.recipe import MULTICLASS, Recipe
from effnet_ray.tracking import trackers as track
from effnet_ray.train.finetune import check_sync
from effnet_ray.variants import InputSpec


def quick(
    data: str,
    runs: str,
    store: str,
    *,
    trackers: Sequence[str],
    single_writer: bool,
    submitted: bool,
) -> Iterator[Finding]:
    """What takes a moment, and what no run would say before it is too late."""
    yield from check_places(data, runs, store, single_writer=single_writer)
    yield from _trackers(trackers)
    if submitted:
        yield from working_dir(Path.cwd(), submits=False)


def full(
    recipe: Recipe,
    placement: Placement,
    data: str,
    runs: str,
    store: str,
    mirror: str | None,
    *,
    trackers: Sequence[str],
    single_writer: bool,
    submits: bool,
    connect: Callable[[Placement], object],
) -> Iterator[Finding]:
    """All of it. `connect` joins or starts Ray; `submits`: the working dir is to be submitted."""
    yield from check_places(data, runs, store, single_writer=single_writer)
    yield from inputs(recipe, data, mirror)
    yield from _trackers(trackers)
    yield from working_dir(Path.cwd(), submits=submits)
    connect(placement)
    try:
        spec = pretrained.resolve(recipe).spec
    except EffnetRayError:  # said above
        return
    yield run_check("recipe", lambda: _fits(recipe, placement, spec, data))
    most, on_gpu = placement.worker_range[1], placement.gpus_per_worker > 0
    settled = recipe.resolved(spec, workers=most, on_gpu=on_gpu, task=recipe.task or MULTICLASS)
    yield from cluster(settled, placement, [data, runs, store])


def _trackers(names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        yield run_check(f"tracker {name}", partial(track.check_tracker, name))


def _fits(recipe: Recipe, placement: Placement, spec: InputSpec, data: str) -> str:
    """Raises RecipeError where a run would refuse the recipe for its data or its workers."""
    most, on_gpu = placement.worker_range[1], placement.gpus_per_worker > 0
    task = manifests.load(storage.absolute(data)).task
    settled = recipe.resolved(spec, workers=most, on_gpu=on_gpu, task=task)
    check_sync(settled, placement)
    return f"{settled.task}, {settled.lanes} micro-batches of {settled.micro_batch} images a step"
