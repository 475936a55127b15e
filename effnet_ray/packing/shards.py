"""One shard: read its images, look at each, write Parquet; then, last, a record of all that was
seen. A shard whose record fits the plan is finished and never written again.

Shards follow the Hugging Face image layout: `image` (struct of `bytes` and `path`), `label`,
beside our `id` and the SHA-256 `digest` of the bytes.
"""

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data.classes import LABEL, task_of
from effnet_ray.data.decode import decode, encode_jpeg
from effnet_ray.data.manifest import Shard
from effnet_ray.errors import ImageError
from effnet_ray.packing import sources
from effnet_ray.packing.archives import schema
from effnet_ray.packing.duplicates import phash
from effnet_ray.recipe import MULTILABEL
from effnet_ray.schema import from_dict
from effnet_ray.storage import parquet

ROW_GROUP_IMAGES = 64
ROW_GROUP_BYTES = 16 * 1024**2
"""A row group is the unit of a range read: ≤ 64 images and about ≤ 16 MB."""

READERS = max(8, os.cpu_count() or 1)
"""Parallel reads of source images per shard; decoders and S3 clients release the GIL."""

SEEN = schema(
    id=pa.int64(),
    label=LABEL,
    path=pa.string(),
    digest=pa.string(),
    phash=pa.uint64(),
    bytes=pa.int64(),
    width=pa.int32(),
    height=pa.int32(),
    reason=pa.string(),
)
"""What is remembered of every source image of a shard; `reason` is empty where it was packed, and
`label` a list where an image may have several."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to write."""

    out: str
    path: str
    """Relative to `out`."""
    classes: tuple[str, ...]
    images: pa.Table
    """Rows of the listing, with `id`, in the shard's order."""
    max_side: int | None
    records: str
    """Folder of the shards' records."""

    @property
    def plan(self) -> str:
        """SHA-256 of what the shard is to hold."""
        told = [self.path, self.classes, self.max_side, self.images.select(
            ["id", "label", "path", "bytes"]).to_pydict()]  # fmt: skip
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @property
    def label(self) -> pa.DataType:
        """Of the images: LABEL or LABELS."""
        return self.images.schema.field("label").type

    @property
    def record(self) -> str:
        """URI of the shard's record."""
        return storage.join(self.records, self.path.replace("/", "-"))


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A finished shard."""

    shard: Shard
    seen: pa.Table


@dataclass(frozen=True, slots=True)
class Image:
    """One source image as it will be packed, or why it will not."""

    row: dict[str, Any]
    data: bytes
    seen: dict[str, Any]


def write(job: ShardJob) -> WrittenShard:
    """Write the shard and its record, unless that was done; runs anywhere on the cluster."""
    done = _finished(job)
    if done:
        return done
    seen: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="effnet-pack-") as folder,
        ThreadPoolExecutor(READERS) as pool,
    ):
        local = Path(folder) / "shard.parquet"
        images = _ahead(pool, lambda row: _look(row, job.max_side), job.images.to_pylist())
        columns = _schema(job.classes, job.label)
        row_groups = _write_rows(local, _remembering(images, seen), columns)
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(
            path=job.path,
            row_groups=tuple(row_groups),
            bytes=local.stat().st_size,
            sha256=digest,
        )
        if shard.rows:
            storage.upload(local, storage.join(job.out, job.path))
    place = SEEN.get_field_index("label")
    remembered = SEEN.set(place, SEEN.field(place).with_type(job.label))
    table = pa.Table.from_pylist(seen, schema=remembered)
    _write_record(job, shard, table)
    return WrittenShard(shard, table)


def _finished(job: ShardJob) -> WrittenShard | None:
    """The shard as its record tells, if that is of the same plan and the shard is still there."""
    if not storage.exists(job.record):
        return None
    table = parquet.read_table(job.record)
    told = table.schema.metadata or {}
    if told.get(b"plan") != job.plan.encode():
        return None
    shard: Shard = from_dict(Shard, json.loads(told[b"shard"]))
    if shard.rows and not storage.exists(storage.join(job.out, job.path)):
        return None
    return WrittenShard(shard, table.replace_schema_metadata(None))


def _write_record(job: ShardJob, shard: Shard, seen: pa.Table) -> None:
    told = {"plan": job.plan, "shard": json.dumps(asdict(shard))}
    parquet.write_table(job.record, seen.replace_schema_metadata(told))


def _ahead(
    pool: ThreadPoolExecutor, apply: Callable[[Any], Image], items: Sequence[Any]
) -> Iterator[Image]:
    """Results in order, with a row group's worth of them under way."""
    waiting: deque[Future[Image]] = deque()
    for item in items:
        waiting.append(pool.submit(apply, item))
        if len(waiting) > ROW_GROUP_IMAGES:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _look(row: dict[str, Any], max_side: int | None) -> Image:
    """Read and decode one image."""
    data = sources.read(row["file"], row["offset"], row["bytes"])
    seen = {"id": row["id"], "label": row["label"], "path": row["path"]}
    seen |= {"digest": hashlib.sha256(data).hexdigest(), "phash": 0, "width": 0, "height": 0}
    try:
        pixels = decode(data)
    except ImageError as error:
        return Image(row, data, {**seen, "bytes": len(data), "reason": str(error)})
    if max_side and max(pixels.shape[:2]) > max_side:
        data = encode_jpeg(pixels, max_side)
        seen["digest"] = hashlib.sha256(data).hexdigest()
    height, width = pixels.shape[:2]
    seen |= {"phash": phash(pixels), "width": width, "height": height}
    return Image(row, data, {**seen, "bytes": len(data), "reason": ""})


def _remembering(images: Iterable[Image], seen: list[dict[str, Any]]) -> Iterator[Image]:
    """The images that can be packed; all are remembered."""
    for image in images:
        seen.append(image.seen)
        if not image.seen["reason"]:
            yield image


def _write_rows(local: Path, images: Iterable[Image], columns: pa.Schema) -> list[int]:
    """Write Parquet, a row group at a time; returns the images of each."""
    counts = []
    # Images are compressed already; page checksums let any Parquet reader find bit flips.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(local, columns, write_page_checksum=True, **options) as writer:
        for group in _row_groups(images):
            writer.write_table(_table(group, columns), row_group_size=len(group))
            counts.append(len(group))
    return counts


def _row_groups(images: Iterable[Image]) -> Iterator[list[Image]]:
    group: list[Image] = []
    size = 0
    for image in images:
        group.append(image)
        size += len(image.data)
        if len(group) == ROW_GROUP_IMAGES or size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema(classes: Sequence[str], label: pa.DataType) -> pa.Schema:
    """Our columns, with class names where Hugging Face's `datasets` looks for them."""
    told: dict[str, Any] = {"names": list(classes), "_type": "ClassLabel"}
    if task_of(label) == MULTILABEL:
        told = {"feature": told, "_type": "Sequence"}
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": told,
        "digest": {"dtype": "string", "_type": "Value"},
    }
    return pa.schema(
        [
            ("id", pa.int64()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", label),
            ("digest", pa.string()),
        ],
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "classes": json.dumps(list(classes)),
        },
    )


def _table(images: Sequence[Image], columns: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": image.row["id"],
                "image": {"bytes": image.data, "path": image.row["path"]},
                "label": image.row["label"],
                "digest": image.seen["digest"],
            }
            for image in images
        ],
        schema=columns,
    )
