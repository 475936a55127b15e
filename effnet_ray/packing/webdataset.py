"""Samples of WebDataset tars: files that share their name up to its first dot.

A sample is an image with its label. Members that are neither are set aside with the reason.
Pickled members are never opened.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from effnet_ray import safe_json, storage
from effnet_ray.data.image_checks import DEFLATE_RATIO, MAX_FILE_BYTES
from effnet_ray.data.image_files import IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError
from effnet_ray.packing.archive_job import ArchiveJob, Sample, optional_text, set_aside_sample
from effnet_ray.packing.listing import HIDDEN, is_hidden, kept_json, suffix_of

Mode = Literal["r|", "r|gz"]
"""tarfile's mode of a plain or a compressed tar, read as a stream."""
LABEL_SUFFIXES = ("cls", "txt", "json")
EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
MAX_HEADER_BYTES = 1_000_000
DAMAGED = (tarfile.TarError, EOFError, zlib.error, ValueError, LookupError, ArithmeticError)
"""What tarfile raises for a damaged tar; the last three for numbers in its extended headers."""


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
    set_aside: str = ""
    """Why the member belongs to no sample."""

    @property
    def path(self) -> str:
        return f"{self.key}.{self.suffix}" if self.suffix else self.key

    @property
    def is_image(self) -> bool:
        return f".{self.suffix}" in IMAGE_SUFFIXES


@dataclass(slots=True)
class _Group:
    """The consecutive members of one sample."""

    key: str
    image: _Member | None = None
    others: list[_Member] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, Any]:
        """Suffix → bytes of the files that may have the label."""
        return {m.suffix: m.data for m in self.others if m.suffix in LABEL_SUFFIXES}


def read_samples(job: ArchiveJob, mode: Mode) -> Iterator[Sample]:
    """Yield the samples of a tar, in order. Raises DatasetError for a sample without a label."""
    group: _Group | None = None
    for member in _read_members(job, mode):
        if member.set_aside:
            yield set_aside_sample(member.path, member.set_aside)
            continue
        if group and group.key != member.key:
            yield from _to_samples(job, group)
            group = None
        group = group or _Group(member.key)
        if member.is_image and not group.image:
            group.image = member
        else:
            group.others.append(member)
    if group:
        yield from _to_samples(job, group)


class _Header(tarfile.TarInfo):
    """A member's header; long names and other extended headers are read into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED_HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # not typed
        return member


def _read_members(job: ArchiveJob, mode: Mode) -> Iterator[_Member]:
    filesystem, path = storage.arrow_filesystem(job.uri)
    stream = filesystem.open_input_stream(path, compression=None, buffer_size=1 << 20)
    try:
        with stream, tarfile.open(fileobj=stream, mode=mode, tarinfo=_Header) as tar:
            for info in tar:
                _check_extent(job, info, tar.offset, mode)
                if not info.isdir():
                    yield _to_member(tar, info, mode)
    except DAMAGED as error:
        raise DatasetError(f"{job.uri} is damaged ({error}): upload it again") from error


def _check_extent(job: ArchiveJob, info: tarfile.TarInfo, end: int, mode: Mode) -> None:
    """Raise ReadError for a member that ends after the archive: tarfile would try to skip it.

    `end` is not always that of its size: that of a sparse file counts its holes, too.
    """
    longest = job.bytes * (DEFLATE_RATIO if mode == "r|gz" else 1)
    if info.size < 0 or end > longest + tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"{info.name} has {end - info.offset_data:,} bytes by its header")


def _to_member(tar: tarfile.TarFile, info: tarfile.TarInfo, mode: Mode) -> _Member:
    """The member, with its bytes if they are needed."""
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    is_image = f".{suffix}" in IMAGE_SUFFIXES
    if is_hidden(info.name.removeprefix("./")):
        return _Member(info.name, "", 0, None, HIDDEN)
    if not info.isfile() or info.issparse():
        return _Member(info.name, "", 0, None, "a link or a special file")
    data: Any = None
    if is_image and mode == "r|":
        data = info.size
    elif is_image or suffix in LABEL_SUFFIXES:
        if info.size > MAX_FILE_BYTES:
            return _Member(info.name, "", 0, None, f"too large: {info.size:,} bytes")
        file = tar.extractfile(info)
        data = file.read() if file else b""
    return _Member(f"{folder}/{stem}".lstrip("/"), suffix, info.offset_data, data)


def _to_samples(job: ArchiveJob, group: _Group) -> Iterator[Sample]:
    """Yield the sample with its label from .json, .cls or .txt, and the members set aside."""
    if group.image:
        yield _to_sample(job, group, group.image)
    else:
        _check_dots(job, group)
    for member in group.others:
        if not group.image:
            yield set_aside_sample(member.path, "no image in its sample")
        elif member.is_image:
            yield set_aside_sample(member.path, f"its sample has the image {group.image.path}")
        elif member.suffix not in LABEL_SUFFIXES:
            yield set_aside_sample(
                member.path, f"not an image or label ({suffix_of(member.path)})"
            )


def _to_sample(job: ArchiveJob, group: _Group, image: _Member) -> Sample:
    """Return the image with its label. Raises DatasetError if it has none."""
    record, labels = _parse_json(job, group), group.labels
    label = record.get(job.columns.label_column, labels.get("cls", labels.get("txt")))
    if isinstance(label, bytes):
        label = _decode(job, group, label)
    if label is not None:  # None: the label is missing, which is not an empty set of labels
        label = job.parse_label(label)
    if label is None:
        suffixes = ", ".join(sorted({member.suffix for member in group.others}))
        raise DatasetError(
            f"{job.uri} has no label for {group.key} (files beside the image: "
            f"{suffixes or 'none'}): expected .cls, or .json with the key "
            f"{job.columns.label_column!r}"
        )
    return {
        "path": image.path,
        "offset": image.offset,
        "data": image.data,
        "label": label,
        "group": optional_text(record.get(job.columns.group_column)),
        "split": optional_text(record.get(job.columns.split_column)),
        "kept": kept_json(record, job.columns.kept),
        "set_aside": None,
    }


def _decode(job: ArchiveJob, group: _Group, label: bytes) -> str:
    """A label's text. Raises DatasetError if it is none."""
    try:
        return label.decode().strip()
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{job.uri} has a label beside {group.key} that is not UTF-8 ({error}): correct it"
        ) from error


def _check_dots(job: ArchiveJob, group: _Group) -> None:
    """Raise DatasetError if the sample's image has more dots in its name, and so another key."""
    for member in group.others:
        if member.suffix.endswith(IMAGE_SUFFIXES):
            raise DatasetError(
                f"{job.uri} has {member.path} but no image named {group.key}: a sample's "
                "name ends at its first dot, so remove the dots from the names"
            )


def _parse_json(job: ArchiveJob, group: _Group) -> dict[str, Any]:
    if "json" not in group.labels:
        return {}
    try:
        record = safe_json.parse(group.labels["json"])
    except ValueError as error:
        raise DatasetError(
            f"{job.uri} has invalid JSON beside {group.key} ({error}): correct it"
        ) from error
    return record if isinstance(record, dict) else {}
