"""Actors that each hold a network, fed by Ray Data: who they are, and how arrays reach them.

They compute features, and what a release says of images.
"""

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
from effnet_ray.data.ray_executor import data_context
from effnet_ray.errors import EvaluationError
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.runtime.session import ResourceRequest

FORWARD_GB = 8
"""A batch is what would train in so much memory; without a backward pass it takes a fraction."""
MAX_REASON_CHARS = 300
"""Characters of a failure's own message that are passed on: its end."""
MAX_BATCH = 64
"""Images of a batch at most: as many as `pack` puts into a row group."""
METADATA = "metadata"
"""The column of `encode_row` with JSON."""
MAX_BLOCKS = 1000
"""Of one execution: Ray Data plans all of them before the first."""


def batch_images(recipe: Recipe, size: int) -> int:
    """Images of `size` px that go through the recipe's network at once: never a placement's."""
    return max(1, min(MAX_BATCH, int(recipe.variant_spec.images_in(FORWARD_GB, size))))


@dataclass(frozen=True, slots=True)
class MachineShare:
    """An actor's share of its machine."""

    neighbours: int = 1
    """Actors on it."""
    cores: int | None = None
    """CPU cores of each; not given: the machine's, over the actors on it."""

    def device(self) -> torch.device:
        """Where to compute: on the GPU that the actor has leased, else on its share of the cores.

        The number of threads decides in which order a convolution adds, and so the last digits.
        """
        os.environ.setdefault("MKL_CBWR", "AUTO")  # as in `worker.train`
        leased = ray.is_initialized() and ray.get_gpu_ids()  # asking would start Ray
        if leased:
            return torch.device("cuda")
        torch.set_num_threads(self.cores or max(1, (os.cpu_count() or 1) // self.neighbours))
        return torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ActorPool:
    """Who computes: as many as there are workers, each on what one of these would lease."""

    count: int | tuple[int, int]
    share: MachineShare
    decode_tasks: int
    """Of all."""
    prefetch_mb: int
    """Of all."""
    options: dict[str, Any]
    """What Ray is asked for."""

    @classmethod
    def of(cls, placement: Placement, lease: ResourceRequest, pieces: int) -> Self:
        """For so many pieces of work."""
        low, high = (min(workers, pieces) for workers in placement.worker_range)
        machines = sum(node["Alive"] for node in ray.nodes())
        neighbours = -(-high // machines)
        cores = max(1, os.cpu_count() or 1)
        tasks, ahead_mb = placement.decoding(placement.cores or cores, neighbours)
        store_mb = ray.cluster_resources()["object_store_memory"] / 1024**2
        often = placement.max_failures  # Ray Data's own answer is for ever
        options: dict[str, Any] = {
            "num_cpus": lease.resources_per_worker["CPU"],
            "max_restarts": often,
            "max_task_retries": often,
        }
        if lease.use_gpu:
            options["num_gpus"] = lease.resources_per_worker["GPU"]
        if lease.labels:
            options["label_selector"] = lease.labels
        return cls(
            count=high if low == high else (low, high),
            share=MachineShare(neighbours, placement.cores),
            decode_tasks=tasks * high,
            prefetch_mb=min(ahead_mb * high, int(store_mb / 2)),
            options=options,
        )


def execute(
    work: Sequence[Mapping[str, Any]],
    views: Callable[[Block], Iterator[Block]],
    actor: type,
    told: Sequence[Any],
    actors: ActorPool,
) -> Iterator[Block]:
    """One Ray Data execution over the items of work, in their order.

    Tasks make `views` of them, and actors, made by `actor(*told)`, what is wanted of these.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(data_context(actors.prefetch_mb)), warnings.catch_warnings():
        # Of Ray 2.60, about names of parameters that 2.51 deprecated and still knows alone.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        tasks = min(actors.decode_tasks, len(work))
        found = (
            ray.data.from_items(list(work), override_num_blocks=min(MAX_BLOCKS, len(work)))
            .map_batches(views, batch_size=None, num_cpus=0, concurrency=tasks)
            .map_batches(
                actor,
                fn_constructor_args=tuple(told),
                batch_size=None,
                concurrency=actors.count,
                **actors.options,
            )
        )
        blocks: Iterator[Block] = iter(
            found.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        )
    return blocks


@contextmanager
def as_evaluation_error(what: str) -> Iterator[None]:
    """What kills tasks and actors, again and again, becomes an EvaluationError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        why = " ".join(str(getattr(error, "cause", None) or error).split())[-MAX_REASON_CHARS:]
        raise EvaluationError(
            f"{what} failed ({type(error).__name__}: {why}): run the same command again, on fewer "
            "--workers if memory ran out"
        ) from error


def as_single_row(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column of one row, which is the array: Ray Data cuts blocks between rows."""
    column = np.empty(1, object)
    column[0] = array
    return column


def encode_row(metadata: Mapping[str, Any], **arrays: npt.NDArray[Any]) -> Block:
    """A block of one row: a batch's arrays, and its metadata as JSON.

    JSON keeps every digit of a float64.
    """
    columns = {name: as_single_row(array) for name, array in arrays.items()}
    return columns | {METADATA: np.asarray([json.dumps(metadata)], object)}


def decode_rows(block: Block) -> Iterator[tuple[dict[str, Any], Block]]:
    """The metadata and the arrays of each row that `encode_row` made."""
    for row, metadata in enumerate(block[METADATA].tolist()):
        arrays = {name: column[row] for name, column in block.items() if name != METADATA}
        yield json.loads(metadata), arrays
