"""The feature cache filled and read in this process, without Ray, and heads solved from it."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from effnet_ray import storage
from effnet_ray.data import feature_cache
from effnet_ray.data.chunks import ChunkTask, load_rows
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.model.network import Network
from effnet_ray.train.feature_tasks import (
    Computation,
    FeatureTask,
    computations,
    list_tasks,
    missing_shards,
)
from effnet_ray.train.head_features import HeadFeatures
from effnet_ray.train.head_solver import solve_head
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.state import initial_network
from effnet_ray.train.worker_job import WorkerJob

BATCH = 64
Array = npt.NDArray[Any]


@torch.no_grad()
def compute_features(job: WorkerJob) -> None:
    """Write the features that the run's linear probing reads, and its teacher's logits."""
    for computation in computations(job):
        _compute(computation)


def _compute(computation: Computation) -> None:
    dataset, folders = computation.dataset, computation.folders
    missing = missing_shards(dataset, folders, retry_bad=False)
    if not missing:
        return
    network = initial_network(computation.run, computation.weights_uri).eval()
    outputs = list(computation.outputs)

    def compute(task: FeatureTask) -> FeatureRows:
        chunk = ChunkTask(task.split, 0, 0, 0, 0, view=task.view)
        rows = np.asarray([(task.group, row, 0) for row in range(task.first, task.end)], np.int64)
        block = load_rows(dataset, chunk, rows, reads.start(task.split, [task.group]))
        image = torch.from_numpy(block["image"]).permute(0, 3, 1, 2)
        features, logits = network.features_and_logits(image)
        actual = (logits[:, outputs] if outputs else features).numpy()
        if outputs:
            actual[block["bad"] != ""] = np.nan
        dtype = np.float16 if task.split == "train" else np.float32
        return FeatureRows(actual.astype(dtype), block["label"], block["id"], list(block["bad"]))

    reads = dataset.row_group_reads()
    tasks = list_tasks(dataset, missing, BATCH)
    for (split, view, shard), group in itertools.groupby(tasks, lambda task: task.file):
        uri = folders[split, view]
        feature_cache.write(storage.join(uri, feature_cache.file_name(shard)), map(compute, group))
    for split, view in missing:
        names = map(feature_cache.file_name, range(len(dataset.manifest.splits[split])))
        feature_cache.write_record(folders[split, view], names)


def solve_in_group(rank: int, job: WorkerJob, workers: int, folder: str) -> None:
    """One of a group's processes: solves the head; worker 0 writes it to a file."""
    with group(rank, workers, folder):
        network = initial_network(job.run, job.weights_uri)
        features = HeadFeatures(job.dataset, rank, workers, block_groups=1)
        solve_head([network], features, TrainLoss.of(job.run.recipe, ()), leads=rank == 0)
        torch.save(head(network), f"{folder}/{workers}-{rank}.pt")


def stop_in_group(rank: int, job: WorkerJob, workers: int, folder: str) -> None:
    """One of a group's processes, the last of which stops; writes a file if solving stopped."""
    with group(rank, workers, folder):
        network = initial_network(job.run, job.weights_uri)
        before = head(network)["weight"].clone()
        passes = iter([False] * 7 + [rank == workers - 1] * 2)
        result = solve_head(
            [network], HeadFeatures(job.dataset, rank, workers, block_groups=1),
            TrainLoss.of(job.run.recipe, ()), leads=rank == 0, should_stop=lambda: next(passes),
        )  # fmt: skip
        assert result is None and torch.equal(before, head(network)["weight"])
        Path(folder, f"{rank}.stopped").touch()


@contextmanager
def group(rank: int, workers: int, folder: str) -> Iterator[None]:
    """This process as one of a group, on one thread."""
    torch.set_num_threads(1)
    if workers == 1:
        yield
        return
    meeting = f"file://{folder}/meeting-{workers}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    yield
    dist.destroy_process_group()


def head(network: Network) -> dict[str, Tensor]:
    """The weights and biases of a network's head."""
    return dict(network.backbone.classifier.state_dict())


def cached(job: WorkerJob, split: str) -> tuple[Array, Array]:
    """Features and labels of a split."""
    parts = []
    for number, shard in enumerate(job.dataset.manifest.splits[split]):
        uri = f"{job.dataset.features_uri(split, None)}/{feature_cache.file_name(number)}"
        groups = range(-(-sum(shard.row_groups) // feature_cache.ROW_GROUP_ROWS))
        parts += [feature_cache.read(uri, group) for group in groups]
    features = np.concatenate([part.feature for part in parts]).astype(np.float64)
    return features, np.concatenate([part.label for part in parts])


def probe_top1(job: WorkerJob) -> float:
    """Top-1 of scikit-learn's logistic regression on the eval split, with its best penalty."""
    (train, label), (test, expected) = cached(job, "train"), cached(job, "eval")
    probes = [LogisticRegression(C=c, max_iter=2000).fit(train, label) for c in (0.01, 0.1, 1.0)]
    return max(float(probe.score(test, expected)) for probe in probes)
