"""Images inside larger files: Parquet rows in Hugging Face's layout, and WebDataset tars.

A tar is indexed in one sequential read; its images are later read by range. Parquet cells and
compressed tars have no range of their own: their images are copied once into a *spool*, a plain
file of all of them end to end, so that packing can shuffle globally without holding them.
Pickled members are never opened.
"""

import hashlib
import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import classes, hf_parquet
from effnet_ray.data.decode import IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError
from effnet_ray.storage import parquet

TARS = (".tar", ".tar.gz", ".tgz")
SUFFIXES = (".parquet", *TARS)


def schema(**types: Any) -> pa.Schema:
    """Columns and their types."""
    return pa.schema(list(types.items()))


SCHEMA = schema(
    path=pa.string(),
    file=pa.string(),
    offset=pa.int64(),
    bytes=pa.int64(),
    label=pa.string(),
    group=pa.string(),
    split=pa.string(),
)
"""`offset` is -1 where the image is the whole file."""


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """One archive to index."""

    source: str
    path: str
    bytes: int
    label: str
    separator: str
    """Between the labels of one image; empty where each has one."""
    group: str
    split: str
    """Names of the columns or JSON keys, as is `label`; these may be empty."""
    classes: Sequence[str] | None
    """Names of numbered labels, where the archive tells them."""
    spool: str
    """Folder for what cannot be read by range, and for the index."""

    @property
    def uri(self) -> str:
        """Where the archive lies."""
        return storage.join(self.source, self.path)

    @property
    def key(self) -> str:
        """A file name of its own."""
        told = {k: v for k, v in asdict(self).items() if k != "spool"}
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def table(columns: dict[str, Any]) -> pa.Table:
    """An index from some of its columns; the others are null, offsets -1."""
    count = len(columns["path"])
    columns = {"offset": [-1] * count, **columns}
    arrays = []
    for field in SCHEMA:
        values = columns.get(field.name)
        if isinstance(values, pa.ChunkedArray):
            arrays.append(values)
        else:
            arrays.append(pa.array([None] * count if values is None else values, field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def class_names(source: str, paths: Sequence[str], label: str) -> Sequence[str] | None:
    """Names of a ClassLabel column, from the first Parquet file; None where it tells none."""
    files = [path for path in paths if path.lower().endswith(".parquet")]
    if not files:
        return None
    filesystem, path = storage.arrow_filesystem(storage.join(source, files[0]))
    schema = storage.read_with_retries(path, lambda: pq.read_schema(path, filesystem=filesystem))
    metadata = schema.metadata or {}
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        if isinstance(found, list):  # a list of labels, in the older of two ways to say so
            found = found[0]
        return list(map(str, found.get("feature", found)["names"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def index(job: ArchiveJob) -> pa.Table:
    """The archive's index; made once, then found again in the spool."""
    kept = storage.join(job.spool, f"{job.key}.parquet")
    if storage.exists(kept):
        return parquet.read_table(kept)
    found = storage.read_with_retries(job.uri, lambda: _index(job), 3 * job.bytes)
    parquet.write_table(kept, found)
    return found


def _index(job: ArchiveJob) -> pa.Table:
    """Read the archive once, from its beginning to its end."""
    kind = job.path.lower()
    if kind.endswith(".tar"):
        return _table(job, _samples(job, "r|"), job.uri)
    with tempfile.TemporaryDirectory(prefix="effnet-spool-") as folder:
        local = Path(folder) / "images"
        spooled = storage.join(job.spool, f"{job.key}.images")
        with local.open("wb") as spool:
            images = _cells(job) if kind.endswith(".parquet") else _samples(job, "r|gz")
            found = _table(job, _spooled(images, spool), spooled)
        storage.upload(local, spooled)
        return found


Sample = dict[str, Any]
"""`path`, `offset`, `data` (bytes, or their count), `label`, `group`, `split`."""


def _table(job: ArchiveJob, samples: Iterator[Sample], file: str) -> pa.Table:
    """The index of some samples whose bytes lie in `file`."""
    found: dict[str, list[Any]] = {name: [] for name in SCHEMA.names if name != "file"}
    for sample in samples:
        size = sample.pop("data")
        found["bytes"].append(size if isinstance(size, int) else len(size))
        found["path"].append(f"{job.path}#{sample.pop('path')}")
        for name, value in sample.items():
            found[name].append(value)
    return table({**found, "file": [file] * len(found["path"])})


def _spooled(samples: Iterator[Sample], spool: BinaryIO) -> Iterator[Sample]:
    """The samples, their bytes appended to the spool."""
    for sample in samples:
        yield {**sample, "offset": spool.tell()}
        spool.write(sample["data"])


def _cells(job: ArchiveJob) -> Iterator[Sample]:
    """Rows of a Parquet file, a few at a time."""
    filesystem, path = storage.arrow_filesystem(job.uri)
    wanted = [name for name in ("image", job.label, job.group, job.split) if name]
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        _check_columns(job, file.schema_arrow, wanted)
        number = 0
        for batch in file.iter_batches(batch_size=16, columns=wanted):
            for row in batch.to_pylist():
                yield _cell(job, number, row)
                number += 1


def _check_columns(job: ArchiveJob, schema: pa.Schema, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in schema.names]
    if missing or not hf_parquet.holds_images(schema):
        raise DatasetError(
            f"{job.uri} has the columns {', '.join(schema.names)}: expected `image` "
            f"{{bytes, path}} and {', '.join(n for n in wanted if n != 'image')} "
            "(--label-column, --group-column and --split-column name others)"
        )


def _cell(job: ArchiveJob, number: int, row: dict[str, Any]) -> Sample:
    image = row["image"] or {}
    if image.get("bytes") is None:
        raise DatasetError(f"{job.uri} has no image bytes in row {number}: embed the images")
    label = _label(job, row[job.label])
    if label is None:
        raise DatasetError(f"{job.uri} has no {job.label} in row {number}: every image needs one")
    return {
        "path": "/".join(filter(None, (f"{number}", image.get("path")))),
        "offset": 0,
        "data": image["bytes"],
        "label": label,
        "group": _text(row.get(job.group)),
        "split": _text(row.get(job.split)),
    }


def _label(job: ArchiveJob, value: Any) -> str | None:
    """Raises DatasetError for several where one is expected."""
    try:
        return classes.normalize_label(value, job.separator, job.classes)
    except ValueError as error:
        raise DatasetError(f"{job.uri} has {error}") from error


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _samples(job: ArchiveJob, mode: str) -> Iterator[Sample]:
    """WebDataset's samples: members in a row that share their name up to its first dot."""
    sample: dict[str, Any] = {}
    for key, kind, offset, data in _members(job, mode):
        if sample and sample["key"] != key:
            yield from _sample(job, sample)
            sample = {}
        sample = sample or {"key": key, "beside": {}}
        if f".{kind}" in IMAGE_SUFFIXES:
            sample |= {"image": (offset, data), "kind": kind}
        else:
            sample["beside"][kind] = data
    if sample:
        yield from _sample(job, sample)


def _members(job: ArchiveJob, mode: str) -> Iterator[tuple[str, str, int, Any]]:
    """(key, kind, offset, bytes) of a tar's files; of a plain tar's images only the size."""
    filesystem, path = storage.arrow_filesystem(job.uri)
    stream = filesystem.open_input_stream(path, compression=None, buffer_size=1 << 20)
    try:
        with stream, tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                kind, data = kind.lower(), None
                if f".{kind}" in IMAGE_SUFFIXES and mode == "r|":
                    data = member.size
                elif f".{kind}" in IMAGE_SUFFIXES or kind in ("cls", "txt", "json"):
                    file = tar.extractfile(member)
                    data = file.read() if file else b""
                yield f"{folder}/{stem}".lstrip("/"), kind, member.offset_data, data
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DatasetError(f"{job.uri} is damaged ({error}): copy it there again") from error


def _sample(job: ArchiveJob, sample: dict[str, Any]) -> Iterator[Sample]:
    """One sample with its label from .json, .cls or .txt; none where there is no image."""
    if "image" not in sample:
        _check_dots(job, sample)
        return
    told, beside = _json(job, sample), sample["beside"]
    label = told.get(job.label, beside.get("cls", beside.get("txt")))
    if label is not None:  # else it is forgotten, not empty
        label = _label(job, label.decode().strip() if isinstance(label, bytes) else label)
    if label is None:
        kinds = ", ".join(sorted(beside))
        raise DatasetError(
            f"{job.uri} has no label for {sample['key']} (beside the image: "
            f"{kinds or 'nothing'}): expected .cls, or .json with the key {job.label!r}"
        )
    offset, data = sample["image"]
    yield {
        "path": f"{sample['key']}.{sample['kind']}",
        "offset": offset,
        "data": data,
        "label": label,
        "group": _text(told.get(job.group)),
        "split": _text(told.get(job.split)),
    }


def _check_dots(job: ArchiveJob, sample: dict[str, Any]) -> None:
    """WebDataset ends a sample's name at its first dot: a picture with more of them is refused."""
    for kind in sample["beside"]:
        if kind.endswith(IMAGE_SUFFIXES):
            raise DatasetError(
                f"{job.uri} has {sample['key']}.{kind} but no picture named {sample['key']}: take "
                "the dots out of the samples' names"
            )


def _json(job: ArchiveJob, sample: dict[str, Any]) -> dict[str, Any]:
    if "json" not in sample["beside"]:
        return {}
    try:
        told = json.loads(sample["beside"]["json"])
    except ValueError as error:
        raise DatasetError(
            f"{job.uri} has broken JSON beside {sample['key']} ({error})"
        ) from error
    return told if isinstance(told, dict) else {}
