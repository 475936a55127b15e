"""The index of images inside larger files: Parquet in Hugging Face's layout, WebDataset tars.

A tar is indexed in one sequential read; its images are later read by range. Parquet cells and
members of compressed tars cannot be read by range. Their images are copied once into a *spool*,
one plain file per archive with all its images, so that packing can shuffle globally without
holding them in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import safe_json, storage
from effnet_ray.data import hf_parquet
from effnet_ray.errors import DatasetError
from effnet_ray.packing.archive_job import ArchiveJob, Sample, optional_text
from effnet_ray.packing.listing import INDEX_SCHEMA, kept_json, make_index
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.webdataset import read_samples
from effnet_ray.storage import parquet
from effnet_ray.storage.temporary import temporary_folder

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SUFFIXES = (".parquet", *TAR_SUFFIXES)
BATCH_ROWS = 16
"""Rows of a Parquet file that are in memory at a time."""


def read_class_names(source: str, paths: Sequence[str], label: str) -> Sequence[str] | None:
    """Return the names of a ClassLabel column from the first Parquet file; None without any."""
    try:
        feature = _read_features(source, paths)[label]
        if isinstance(feature, list):  # the older of two notations for a list of labels
            feature = feature[0]
        return list(map(str, feature.get("feature", feature)["names"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def with_label_column(source: str, paths: Sequence[str], columns: SourceColumns) -> SourceColumns:
    """The columns, with the only ClassLabel of Parquet files without a column named `label`."""
    features = _read_features(source, paths)
    labels = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    ]
    if columns.label_column == SourceColumns().label_column not in features and len(labels) == 1:
        return replace(columns, label_column=labels[0])
    return columns


def _read_features(source: str, paths: Sequence[str]) -> dict[str, Any]:
    """The features that `datasets` stored in the first Parquet file; empty without any."""
    files = [path for path in paths if path.lower().endswith(".parquet")]
    if not files:
        return {}
    metadata = parquet.read_schema(storage.join(source, files[0])).metadata or {}
    try:
        features = safe_json.parse(metadata[b"huggingface"])["info"]["features"]
    except (LookupError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def index_archive(job: ArchiveJob) -> pa.Table:
    """Return the archive's index, from the spool if an earlier call has stored it."""
    uri = storage.join(job.spool, f"{job.key}.parquet")
    if storage.exists(uri):
        return parquet.read_table(uri)
    index = storage.read_with_retries(job.uri, lambda: _read_index(job), 3 * job.bytes)
    parquet.write_table(uri, index)
    return index


def _read_index(job: ArchiveJob) -> pa.Table:
    """Read the archive once, from its beginning to its end."""
    path = job.path.lower()
    if path.endswith(".tar"):
        return _to_index(job, read_samples(job, "r|"), job.uri)
    with temporary_folder("spool") as folder:
        local = folder / "images"
        spool_uri = storage.join(job.spool, f"{job.key}.images")
        with local.open("wb") as spool:
            samples = _read_rows(job) if path.endswith(".parquet") else read_samples(job, "r|gz")
            index = _to_index(job, _copy_to_spool(samples, spool), spool_uri)
        storage.upload(local, spool_uri)
        return index


def _to_index(job: ArchiveJob, samples: Iterator[Sample], file: str) -> pa.Table:
    """Return the index of samples whose bytes are in `file`."""
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names if name != "file"}
    for sample in samples:
        data = sample["data"]
        columns["path"].append(f"{job.path}#{sample['path']}")
        columns["bytes"].append(data if isinstance(data, int) else len(data))
        for name in ("offset", "label", "group", "split", "kept", "set_aside"):
            columns[name].append(sample[name])
    return make_index({**columns, "file": [file] * len(columns["path"])})


def _copy_to_spool(samples: Iterator[Sample], spool: BinaryIO) -> Iterator[Sample]:
    """Append the samples' images to the spool; yield the samples with their offsets in it."""
    for sample in samples:
        yield {**sample, "offset": spool.tell()}
        spool.write(sample["data"])


def _read_rows(job: ArchiveJob) -> Iterator[Sample]:
    """Yield a sample for each row of a Parquet file."""
    filesystem, path = storage.arrow_filesystem(job.uri)
    columns = job.columns
    others = [columns.label_column, columns.group_column, columns.split_column, *columns.kept]
    with parquet.errors(job.uri), pq.ParquetFile(path, filesystem=filesystem) as file:
        image = hf_parquet.image_column(file.schema_arrow)
        names = [image, *filter(None, others)]
        _check_columns(job, file.schema_arrow, names)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
            parquet.check_plain(batch.schema, job.uri)
            for row in batch.to_pylist():
                yield _to_sample(job, number, row, row[image])
                number += 1


def _check_columns(job: ArchiveJob, schema: pa.Schema, names: Sequence[str]) -> None:
    if not set(names) <= set(schema.names):
        raise DatasetError(
            f"{job.uri} has the columns {', '.join(schema.names)}: expected one column of images "
            f"({{bytes, path}} or binary) and {', '.join(names[1:])}; for other column names use "
            "--label-column, --group-column, --split-column or --keep-columns"
        )


def _to_sample(job: ArchiveJob, number: int, row: dict[str, Any], image: Any) -> Sample:
    columns, (data, path) = job.columns, hf_parquet.image_value(image)
    if data is None:
        raise DatasetError(f"{job.uri} has no image bytes in row {number}: embed the images")
    label = job.parse_label(row[columns.label_column])
    if label is None:
        raise DatasetError(
            f"{job.uri} has no {columns.label_column} in row {number}: give every image a label"
        )
    return {
        "path": "/".join(filter(None, (f"{number}", path))),
        "offset": 0,
        "data": data,
        "label": label,
        "group": optional_text(row.get(columns.group_column)),
        "split": optional_text(row.get(columns.split_column)),
        "kept": kept_json(row, columns.kept),
        "set_aside": None,
    }
