"""Pools of actors that each hold a network and compute on batches that Ray Data feeds them.

Feature computation, evaluation and prediction use them.
"""

import functools
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import ray
import ray.data
import torch

from effnet_ray.data.chunks import Block
from effnet_ray.data.decode_machines import TaskDealer, cluster_shares, map_on_machines
from effnet_ray.data.ray_executor import data_context
from effnet_ray.errors import EvaluationError, quote_end
from effnet_ray.model.network import fix_order_of_sums
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.runtime.actors import start_local_actor
from effnet_ray.runtime.session import ResourceRequest

FORWARD_GB = 8
"""A batch has as many images as training would fit into this much memory, of which the forward
pass alone needs a fraction. So a batch fits on a GPU of 8 GB; larger ones would only need more."""
MAX_BATCH = 64
"""Largest batch: the images that `pack` puts into a row group."""
MAX_BLOCKS = 1000
"""Largest number of tasks of one execution: Ray Data plans all of them before the first, which
takes 3 s for so many (as in `data.ray_executor`)."""
ITEMS_PER_TASK = 4
"""Items, mostly row groups, of a task where there are enough for all tasks to have several turns:
for features and evaluation, a task reads the next item while it decodes one. Chosen, not
measured."""
METADATA = "metadata"
"""The column of `encode_row` with JSON."""


def batch_images(recipe: Recipe, size: int) -> int:
    """Return the batch size for images of `size` px; it never depends on the placement."""
    return max(1, min(MAX_BATCH, int(recipe.variant_spec.images_in(FORWARD_GB, size))))


@dataclass(frozen=True, slots=True)
class MachineShare:
    """An actor's share of its machine."""

    actors: int = 1
    """Actors on the machine."""
    cores: int | None = None
    """CPU cores per actor. Default: the machine's cores, divided by its actors."""

    def device(self) -> torch.device:
        """Return the actor's GPU if Ray assigned one, else the CPU, with its threads limited.

        The number of threads decides the order in which a convolution sums, and so the last
        digits.
        """
        fix_order_of_sums()
        has_gpu = ray.is_initialized() and ray.get_gpu_ids()  # get_gpu_ids would start Ray
        if has_gpu:
            return torch.device("cuda")
        torch.set_num_threads(self.cores or max(1, (os.cpu_count() or 1) // self.actors))
        return torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ActorPool:
    """As many actors as a placement has workers, each with one worker's resources."""

    count: int | tuple[int, int]
    share: MachineShare
    decode_tasks: int
    """Parallel decode tasks of the whole pool."""
    prefetch_mb: int
    """Prefetch buffer of the whole pool, MB."""
    options: dict[str, Any]
    """Ray's options for an actor."""

    @classmethod
    def of(cls, placement: Placement, request: ResourceRequest, batches: int) -> Self:
        """Return the pool for a number of batches: never more actors than batches."""
        low, high = (min(workers, batches) for workers in placement.worker_range)
        machines = sum(node["Alive"] for node in ray.nodes())
        actors_per_machine = -(-high // machines)
        cores = placement.cores * high if placement.cores else _cluster_cores()
        decode_tasks, prefetch_mb = placement.decoding(cores, high)
        store_mb = ray.cluster_resources()["object_store_memory"] / 1024**2
        options: dict[str, Any] = {
            "num_cpus": request.resources_per_worker["CPU"],
            # Ray Data's default for both is unlimited.
            "max_restarts": placement.max_failures,
            "max_task_retries": placement.max_failures,
        }
        if request.use_gpu:
            options["num_gpus"] = request.resources_per_worker["GPU"]
        if request.labels:
            options["label_selector"] = request.labels
        return cls(
            count=high if low == high else (low, high),
            share=MachineShare(actors_per_machine, placement.cores),
            decode_tasks=decode_tasks * high,
            prefetch_mb=min(prefetch_mb * high, int(store_mb / 2)),
            options=options,
        )


def _cluster_cores() -> int:
    """Cores of the machines that decode; of this one where none has started yet."""
    here = max(1, os.cpu_count() or 1)
    shares = cluster_shares() or {"": here}
    if shares.keys() == {ray.get_runtime_context().get_node_id()}:
        # A local Ray is started with more cores than exist if there are more workers than cores.
        return int(min(here, max(1, *shares.values(), 1)))
    return int(max(1, sum(shares.values())))


def _blocks(items: int, tasks: int) -> int:
    """Blocks of items, one per task of Ray Data: four turns of all parallel tasks, or more."""
    return min(MAX_BLOCKS, items, max(4 * tasks, items // ITEMS_PER_TASK))


def execute(
    items: Sequence[Mapping[str, Any]],
    preprocess: Callable[[Block], Iterator[Block]],
    actor_class: type,
    actor_arguments: Sequence[Any],
    pool: ActorPool,
) -> Iterator[Block]:
    """Yield the actors' output blocks in the order of the items, in one Ray Data execution.

    Tasks `preprocess` the items; actors, each `actor_class(*actor_arguments)`, process the result.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _silence_restart_warning()
    with ray.data.DataContext.current(data_context(pool.prefetch_mb)), warnings.catch_warnings():
        # Ray 2.60 warns about `concurrency`, whose replacements Ray 2.51 does not have.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        tasks = min(pool.decode_tasks, len(items))
        given = ray.data.from_items(list(items), override_num_blocks=_blocks(len(items), tasks))
        views = map_on_machines(given, preprocess, tasks=tasks, dealer=TaskDealer(cluster_shares))
        dataset = views.map_batches(
            actor_class,
            fn_constructor_args=tuple(actor_arguments),
            batch_size=None,
            concurrency=pool.count,
            **pool.options,
        )
        blocks: Iterator[Block] = iter(
            dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        )
    return blocks


class _Empty:
    """An actor class whose constructor takes an object reference."""

    def __init__(self, _: object) -> None:
        """Do nothing."""


@functools.cache
def _silence_restart_warning() -> None:
    """Keep Ray's warning about restartable actors with object references off the terminal.

    Ray's C++ code writes it to stderr, once per process and with no setting against it, when such
    an actor is created (ray 2.60 `core_worker.cc`, ray-project/ray#53727). Ray Data keeps the
    references for as long as its actors live, so the warning does not apply to them. It is
    triggered here while stderr is redirected; the driver's own log file still contains it.
    """
    if ray.get_runtime_context().get_actor_id():
        return  # an actor's stderr is a log file
    reference = ray.put(None)
    try:
        stderr = os.dup(2)
    except OSError:
        return  # this process has no stderr
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        actor = start_local_actor(_Empty, reference, max_restarts=1)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
    ray.kill(actor)


@contextmanager
def as_evaluation_error(action: str) -> Iterator[None]:
    """Raise EvaluationError if tasks or actors still fail after all retries."""
    try:
        yield
    except ray.exceptions.RayError as error:
        reason = quote_end(getattr(error, "cause", None) or error)
        raise EvaluationError(
            f"{action} failed ({type(error).__name__}: {reason}): run the same command again, "
            "with fewer --workers if memory ran out"
        ) from error


def as_single_row(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a column of one row that holds the array: Ray Data splits blocks between rows."""
    column = np.empty(1, object)
    column[0] = array
    return column


def encode_row(metadata: Mapping[str, Any], **arrays: npt.NDArray[Any]) -> Block:
    """Return a block of one row: a batch's arrays, and its metadata as JSON.

    JSON keeps every digit of a float64.
    """
    columns = {name: as_single_row(array) for name, array in arrays.items()}
    return columns | {METADATA: np.asarray([json.dumps(metadata)], object)}


def decode_rows(block: Block) -> Iterator[tuple[dict[str, Any], Block]]:
    """Yield the metadata and the arrays of each row that `encode_row` made."""
    for row, metadata in enumerate(block[METADATA].tolist()):
        arrays = {name: column[row] for name, column in block.items() if name != METADATA}
        yield json.loads(metadata), arrays
