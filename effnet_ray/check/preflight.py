"""All that can be looked at before a run, in the order in which it would fail."""

from collections.abc import Callable, Iterator
from pathlib import Path

from effnet_ray.check.cluster import cluster
from effnet_ray.check.findings import Finding
from effnet_ray.check.inputs import inputs
from effnet_ray.check.places import places
from effnet_ray.check.working_dir import working_dir
from effnet_ray.errors import EffnetRayError
from effnet_ray.model import weights as pretrained
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe


def quick(
    data: str, runs: str, store: str, *, single_writer: bool, submitted: bool
) -> Iterator[Finding]:
    """What takes a moment, and what no run would say before it is too late."""
    yield from places(data, runs, store, single_writer=single_writer)
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
    single_writer: bool,
    submits: bool,
    connect: Callable[[Placement], object],
) -> Iterator[Finding]:
    """All of it. `connect` joins or starts Ray; `submits`: the working dir is to be submitted."""
    yield from places(data, runs, store, single_writer=single_writer)
    yield from inputs(recipe, data, mirror)
    yield from working_dir(Path.cwd(), submits=submits)
    connect(placement)
    try:
        spec = pretrained.resolve(recipe).spec
    except EffnetRayError:  # said above
        return
    most, on_gpu = placement.worker_range[1], placement.gpus_per_worker > 0
    settled = recipe.settled(spec, workers=most, on_gpu=on_gpu)
    yield from cluster(settled, placement, [data, runs, store])
