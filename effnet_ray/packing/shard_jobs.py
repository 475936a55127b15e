"""Plans which shard holds which images, and runs the jobs that write the shards."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.manifest import SPLITS
from effnet_ray.packing import splits
from effnet_ray.packing.listing import WORK_FOLDER, Listing, Map
from effnet_ray.packing.options import Packing
from effnet_ray.packing.shards import WriteJob, WrittenShard, write_shard
from effnet_ray.packing.splits import Ints

SHARD_BYTES = 128 * 1024**2
"""Bytes of images per shard, about: ImageNet-1k, 140 GB, has a thousand shards, few enough to list
and enough to spread over tasks."""

OnProgress = Callable[[int, int], None]
"""Called with the number of packed images and of all images."""


class ShardWriter:
    """Plans shards and runs the jobs that write them."""

    def __init__(
        self,
        listing: Listing,
        packing: Packing,
        out: str,
        on_progress: OnProgress | None,
        map_function: Map,
    ) -> None:
        ids = pa.array(range(len(listing.images)), pa.int64())
        self._images = listing.images.append_column("id", ids)
        self._sizes = self._images["bytes"].to_numpy()
        self._classes, self._packing, self._out = listing.classes, packing, out
        self._on_progress, self._map = on_progress, map_function
        self._planned: dict[str, Ints] = {}

    def write(self, order: dict[str, Ints]) -> dict[str, WrittenShard]:
        """Write every shard; return the written shards by path."""
        self._planned = {
            f"{name}/{index:05d}.parquet": ids
            for name in order
            for index, ids in enumerate(splits.cut_shards(order[name], self._sizes, SHARD_BYTES))
        }
        return self._run(self._planned)

    def rewrite(self, before: Ints, after: Ints) -> dict[str, WrittenShard]:
        """Write the shards that lose images again; append shards with the moved images."""
        moved = np.flatnonzero(before != after)
        planned = {path: ids[~np.isin(ids, moved)] for path, ids in self._planned.items()}
        for index, name in enumerate(SPLITS):
            count = sum(path.startswith(f"{name}/") for path in planned)
            arriving = moved[after[moved] == index]
            shards = splits.cut_shards(arriving, self._sizes, SHARD_BYTES)
            for number, ids in enumerate(shards, start=count):
                planned[f"{name}/{number:05d}.parquet"] = ids
        return self._run(planned)

    def _run(self, planned: dict[str, Ints]) -> dict[str, WrittenShard]:
        jobs = [self._job(path, ids) for path, ids in planned.items()]
        done, total, written = 0, sum(map(len, planned.values())), {}
        for job, result in zip(jobs, self._map(write_shard, jobs), strict=True):
            written[job.path] = result
            done += len(planned[job.path])
            if self._on_progress:
                self._on_progress(done, total)
        return written

    def _job(self, path: str, ids: Ints) -> WriteJob:
        return WriteJob(
            out=self._out,
            path=path,
            classes=self._classes,
            images=self._images.take(ids),
            max_side=self._packing.max_side,
            record_folder=storage.join(self._out, WORK_FOLDER, "shards"),
        )
