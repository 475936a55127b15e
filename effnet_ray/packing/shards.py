"""Writes one shard: reads and checks its images, writes Parquet, and then a record of all images.

A shard whose record matches its plan is complete and is not written again. Shards have Hugging
Face's image layout, `image` (struct of `bytes` and `path`) and `label`, with our `id` and the
SHA-256 `digest` of the bytes.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import safe_json, storage
from effnet_ray.data.classes import LABEL, task_of
from effnet_ray.data.decode import decode, describe_range, encode_jpeg
from effnet_ray.data.image_checks import check_file_size
from effnet_ray.data.manifest import Shard
from effnet_ray.errors import ImageError
from effnet_ray.packing.duplicates import hash_small, small_grey
from effnet_ray.packing.sources import read_image
from effnet_ray.recipe import MULTILABEL
from effnet_ray.schema import from_dict
from effnet_ray.storage import parquet
from effnet_ray.storage.temporary import temporary_folder

ROW_GROUP_IMAGES = 64
ROW_GROUP_BYTES = 16 * 1024**2
"""A row group is the unit of a range read: at most 64 images and about 16 MB, a fraction of a
second from S3. Smaller ones make footers and manifests longer. Chosen, not measured."""

READERS = max(8, os.cpu_count() or 1)
"""Source images that are read in parallel per shard; decoders and S3 clients release the GIL."""

RECORD_SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "label": LABEL,
        "path": pa.string(),
        "digest": pa.string(),
        "phash": pa.uint64(),
        "bytes": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "brightness": pa.uint8(),
        "value_range": pa.string(),
        "reason": pa.string(),
    }
)
"""The record of every source image of a shard. `reason` says why an image was not packed and is
empty otherwise; `label` is a list in a multilabel data set; `brightness` the mean of
its grey values; `value_range` as `describe_range`."""


@dataclass(frozen=True, slots=True)
class WriteJob:
    """One shard to write."""

    out: str
    path: str
    """Relative to `out`."""
    classes: tuple[str, ...]
    images: pa.Table
    """Rows of the listing, with `id`, in the shard's order."""
    max_side: int | None
    record_folder: str

    @property
    def plan(self) -> str:
        """SHA-256 of everything that determines the shard's content."""
        columns = self.images.select(["id", "label", "path", "bytes"]).to_pydict()
        content = [self.path, self.classes, self.max_side, columns, RECORD_SCHEMA.names]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def label_type(self) -> pa.DataType:
        """Type of the images' labels: LABEL or LABELS."""
        return self.images.schema.field("label").type

    @property
    def record_schema(self) -> pa.Schema:
        """RECORD_SCHEMA with this data set's type of label."""
        column = RECORD_SCHEMA.get_field_index("label")
        return RECORD_SCHEMA.set(column, RECORD_SCHEMA.field(column).with_type(self.label_type))

    @property
    def record_uri(self) -> str:
        """URI of the shard's record."""
        return storage.join(self.record_folder, self.path.replace("/", "-"))


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A complete shard and the records of its images."""

    shard: Shard
    records: pa.Table


@dataclass(frozen=True, slots=True)
class Image:
    """One source image and its record."""

    row: dict[str, Any]
    data: bytes
    record: dict[str, Any]


def write_shard(job: WriteJob) -> WrittenShard:
    """Write the shard and its record, unless complete already. Runs anywhere on the cluster."""
    existing = _load_existing(job)
    if existing:
        return existing
    records: list[dict[str, Any]] = []
    with (
        temporary_folder("pack") as folder,
        ThreadPoolExecutor(READERS) as pool,
    ):
        local = folder / "shard.parquet"
        images = _prefetch(
            pool, lambda row: _read_image(row, job.max_side), job.images.to_pylist()
        )
        schema = _shard_schema(job.classes, job.label_type)
        row_groups = _write_rows(local, _readable(images, records), schema)
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(
            path=job.path,
            row_groups=tuple(row_groups),
            bytes=local.stat().st_size,
            sha256=digest,
        )
        uri = storage.join(job.out, job.path)
        if shard.rows:
            storage.upload(local, uri)
        else:  # all its images may have been moved to another split
            storage.delete(uri)
    table = pa.Table.from_pylist(records, schema=job.record_schema)
    _write_record(job, shard, table)
    return WrittenShard(shard, table)


def _load_existing(job: WriteJob) -> WrittenShard | None:
    """Return the shard from its record, if that matches the plan and the shard exists."""
    if not storage.exists(job.record_uri):
        return None
    table = parquet.read_table(job.record_uri)
    metadata = table.schema.metadata or {}
    if metadata.get(b"plan") != job.plan.encode():
        return None
    shard: Shard = from_dict(Shard, safe_json.parse(metadata[b"shard"]))
    if shard.rows and not storage.exists(storage.join(job.out, job.path)):
        return None
    return WrittenShard(shard, table.replace_schema_metadata(None))


def _write_record(job: WriteJob, shard: Shard, records: pa.Table) -> None:
    metadata = {"plan": job.plan, "shard": json.dumps(asdict(shard))}
    parquet.write_table(job.record_uri, records.replace_schema_metadata(metadata))


def _prefetch(
    pool: ThreadPoolExecutor, function: Callable[[Any], Image], items: Sequence[Any]
) -> Iterator[Image]:
    """Yield results in order while a row group's worth of them is being computed."""
    pending: deque[Future[Image]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ROW_GROUP_IMAGES:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _read_image(row: dict[str, Any], max_side: int | None) -> Image:
    """Read, decode and, if it is too large, downscale one image."""
    data, record = b"", {name: row[name] for name in ("id", "label", "path", "bytes")}
    record |= dict.fromkeys(("reason", "digest", "value_range"), "")
    record |= dict.fromkeys(("phash", "brightness", "width", "height"), 0)
    try:
        check_file_size(row["bytes"])
        data = read_image(row["file"], row["offset"], row["bytes"])
        record |= {"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        pixels = decode(data)
        record["value_range"] = describe_range(data)
    except ImageError as error:
        return Image(row, data, {**record, "reason": str(error)})
    if max_side and max(pixels.shape[:2]) > max_side:
        data = encode_jpeg(pixels, max_side)
        record |= {"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    height, width = pixels.shape[:2]
    grey = small_grey(pixels)
    measured = {"phash": hash_small(grey), "brightness": round(cv2.mean(grey)[0])}
    return Image(row, data, {**record, **measured, "width": width, "height": height})


def _readable(images: Iterable[Image], records: list[dict[str, Any]]) -> Iterator[Image]:
    """Yield the readable images; append the records of all."""
    for image in images:
        records.append(image.record)
        if not image.record["reason"]:
            yield image


def _write_rows(local: Path, images: Iterable[Image], schema: pa.Schema) -> list[int]:
    """Write Parquet, one row group at a time; return the number of images in each."""
    counts = []
    # Images are already compressed. With page checksums any Parquet reader detects bit flips.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(local, schema, write_page_checksum=True, **options) as writer:
        for group in _row_groups(images):
            writer.write_table(_to_table(group, schema), row_group_size=len(group))
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


def _shard_schema(classes: Sequence[str], label_type: pa.DataType) -> pa.Schema:
    """Return the columns, with class names in the format of Hugging Face's `datasets`."""
    label: dict[str, Any] = {"names": list(classes), "_type": "ClassLabel"}
    if task_of(label_type) == MULTILABEL:
        label = {"feature": label, "_type": "Sequence"}
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": label,
        "digest": {"dtype": "string", "_type": "Value"},
    }
    return pa.schema(
        [
            ("id", pa.int64()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", label_type),
            ("digest", pa.string()),
        ],
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "classes": json.dumps(list(classes)),
        },
    )


def _to_table(images: Sequence[Image], schema: pa.Schema) -> pa.Table:
    rows = [image.row for image in images]
    data = pa.array([image.data for image in images], pa.binary())
    paths = pa.array([row["path"] for row in rows], pa.string())
    columns = {
        "id": pa.array([row["id"] for row in rows], pa.int64()),
        "image": pa.StructArray.from_arrays([data, paths], ["bytes", "path"]),
        "label": pa.array([row["label"] for row in rows], schema.field("label").type),
        "digest": pa.array([image.record["digest"] for image in images], pa.string()),
    }
    return pa.table(columns, schema=schema)
