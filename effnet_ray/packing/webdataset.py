"""Samples of WebDataset tars: files that share their name up to its first dot.

Pickled members are never opened.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from effnet_ray import storage
from effnet_ray.data.decode import IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError
from effnet_ray.packing.archive_job import ArchiveJob, Sample, optional_text

Mode = Literal["r|", "r|gz"]
"""tarfile's mode of a plain or a compressed tar, read as a stream."""
LABEL_SUFFIXES = ("cls", "txt", "json")


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a tar."""

    key: str
    """The name of its sample."""
    suffix: str
    """All after the name's first dot, in lower case."""
    offset: int
    data: Any
    """Its bytes; of images in a plain tar only their number; None for files that are not read."""

    @property
    def is_image(self) -> bool:
        return f".{self.suffix}" in IMAGE_SUFFIXES


@dataclass(slots=True)
class _Group:
    """The consecutive members of one sample."""

    key: str
    image: _Member | None = None
    others: dict[str, Any] = field(default_factory=dict)
    """Suffix → bytes."""


def read_samples(job: ArchiveJob, mode: Mode) -> Iterator[Sample]:
    """Yield the samples of a tar, in order. Raises DatasetError for a sample without a label."""
    group: _Group | None = None
    for member in _read_members(job, mode):
        if group and group.key != member.key:
            yield from _to_sample(job, group)
            group = None
        group = group or _Group(member.key)
        if member.is_image:
            group.image = member
        else:
            group.others[member.suffix] = member.data
    if group:
        yield from _to_sample(job, group)


def _read_members(job: ArchiveJob, mode: Mode) -> Iterator[_Member]:
    filesystem, path = storage.arrow_filesystem(job.uri)
    stream = filesystem.open_input_stream(path, compression=None, buffer_size=1 << 20)
    try:
        with stream, tarfile.open(fileobj=stream, mode=mode) as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not info.isfile() or not stem:
                    continue
                suffix = suffix.lower()
                data: Any = None
                if f".{suffix}" in IMAGE_SUFFIXES and mode == "r|":
                    data = info.size
                elif f".{suffix}" in IMAGE_SUFFIXES or suffix in LABEL_SUFFIXES:
                    file = tar.extractfile(info)
                    data = file.read() if file else b""
                yield _Member(f"{folder}/{stem}".lstrip("/"), suffix, info.offset_data, data)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DatasetError(f"{job.uri} is damaged ({error}): upload it again") from error


def _to_sample(job: ArchiveJob, group: _Group) -> Iterator[Sample]:
    """Yield the sample with its label from .json, .cls or .txt; nothing without an image."""
    if not group.image:
        _check_dots(job, group)
        return
    record = _parse_json(job, group)
    label = record.get(job.columns.label_column, group.others.get("cls", group.others.get("txt")))
    if label is not None:  # None: the label is missing, which is not an empty set of labels
        label = job.parse_label(label.decode().strip() if isinstance(label, bytes) else label)
    if label is None:
        suffixes = ", ".join(sorted(group.others))
        raise DatasetError(
            f"{job.uri} has no label for {group.key} (files beside the image: "
            f"{suffixes or 'none'}): expected .cls, or .json with the key "
            f"{job.columns.label_column!r}"
        )
    yield {
        "path": f"{group.key}.{group.image.suffix}",
        "offset": group.image.offset,
        "data": group.image.data,
        "label": label,
        "group": optional_text(record.get(job.columns.group_column)),
        "split": optional_text(record.get(job.columns.split_column)),
    }


def _check_dots(job: ArchiveJob, group: _Group) -> None:
    """Raise DatasetError if the sample's image has more dots in its name, and so another key."""
    for suffix in group.others:
        if suffix.endswith(IMAGE_SUFFIXES):
            raise DatasetError(
                f"{job.uri} has {group.key}.{suffix} but no image named {group.key}: a sample's "
                "name ends at its first dot, so remove the dots from the names"
            )


def _parse_json(job: ArchiveJob, group: _Group) -> dict[str, Any]:
    if "json" not in group.others:
        return {}
    try:
        record = json.loads(group.others["json"])
    except ValueError as error:
        raise DatasetError(
            f"{job.uri} has invalid JSON beside {group.key} ({error}): correct it"
        ) from error
    return record if isinstance(record, dict) else {}
