"""The manifest: one JSON that describes a data set, written after all its shards.

It holds class names, splits and, per shard, row groups, bytes and SHA-256. Its fingerprint depends
on no URI and no time: the same images packed anywhere are the same data set.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Self

from effnet_ray import safe_json, storage
from effnet_ray.data.split_index import SplitIndex
from effnet_ray.errors import (
    BucketNotFoundError,
    DatasetError,
    NotFoundError,
    RecipeError,
    quote,
)
from effnet_ray.schema import from_dict

VERSION = 1
"""Of the format; other versions are refused."""
NAME = "manifest.json"
SPLITS = ("train", "eval", "test")

INVALID_CONTENT = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    RecipeError,
)  # fmt: skip
"""What readers of other content than they expect raise."""

FULL_CHECK_BYTES = 256 * 1024**2
"""Up to this size, every shard's SHA-256 is verified before a run. Of larger data sets only the
shards' sizes are; every image's digest is verified when it is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file of a split."""

    path: str
    """Relative to the manifest's folder."""
    row_groups: tuple[int, ...]
    """Images per Parquet row group, in file order."""
    bytes: int
    sha256: str
    """SHA-256 of the file, or of `digests` if there are any."""
    digests: tuple[str, ...] = ()
    """One digest per row group, for shards that `pack --in-place` indexed (`packing.in_place`)."""

    @property
    def rows(self) -> int:
        """Images in the shard."""
        return sum(self.row_groups)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a data set. A process that receives it several times has it only once."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    splits: dict[str, tuple[Shard, ...]]
    """`train`, `eval` and, if packed with one, `test`."""
    task: str = "multiclass"
    """`multiclass`, or `multilabel`: an image has any number of classes, its label is a list."""
    label_column: str = "label"
    """Name of the label column; other than the default only in shards indexed in place."""
    quarantined: int = 0
    """Files of the source that could not be read as images; quarantine.parquet lists them."""
    labels_sha256: str = ""
    """SHA-256 of the file with the train split's labels (`train_labels`); empty: there is none."""
    made_from: dict[str, str | int | float] = field(default_factory=dict)
    """Provenance; not part of the fingerprint."""

    @property
    def images(self) -> dict[str, int]:
        """Images per split."""
        return {name: self.index(name).images for name in self.splits}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of classes, splits and shard digests."""
        content = {
            "classes": self.classes,
            "splits": {
                name: [(shard.path, shard.row_groups, shard.sha256) for shard in shards]
                for name, shards in sorted(self.splits.items())
            },
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def index(self, split: str) -> SplitIndex:
        """Where a split's images are; empty if there is no such split."""
        if split not in self._indexes:
            shards = self.splits.get(split, ())
            self._indexes[split] = SplitIndex.of(shard.row_groups for shard in shards)
        return self._indexes[split]

    @cached_property
    def _indexes(self) -> dict[str, SplitIndex]:
        return {}

    def limited(self, limit: int | None) -> Self:
        """The manifest with the first `limit` images of each split; the shards are the same."""
        if limit is None:
            return self
        splits = {name: _first(shards, limit) for name, shards in self.splits.items()}
        return replace(self, splits=splits)

    def __reduce__(self) -> tuple[Any, ...]:
        """A key and the content as JSON: see `_once_per_process`."""
        return _once_per_process, self._pickled

    @cached_property
    def _pickled(self) -> tuple[str, bytes]:
        content = json.dumps(self._record).encode()
        return hashlib.sha256(content).hexdigest(), content

    @property
    def _record(self) -> dict[str, Any]:
        """The fields as in the file. `asdict` would copy every row group's size by itself."""
        record = {part.name: getattr(self, part.name) for part in fields(self)}
        shard_fields = [part.name for part in fields(Shard)]
        record["splits"] = {
            name: [{key: getattr(shard, key) for key in shard_fields} for shard in shards]
            for name, shards in self.splits.items()
        }
        return record

    def to_json(self) -> bytes:
        """The file's content."""
        record = {"version": VERSION, "fingerprint": self.fingerprint, **self._record}
        return json.dumps(record, indent=1, ensure_ascii=False).encode()


def _once_per_process(key: str, content: bytes) -> Manifest:
    """The manifest that was sent here: all tasks of a process share one, and its indexes."""
    kept = _kept(key)
    if not kept:
        kept.append(_from_record(json.loads(content)))
    return kept[0]


@lru_cache(maxsize=4)
def _kept(key: str) -> list[Manifest]:
    """The manifest with this key, once it has been received."""
    return []


def _from_record(record: dict[str, Any]) -> Manifest:
    """Raises RecipeError, or what a malformed record raises."""
    if not record["splits"].keys() <= {*SPLITS}:
        raise ValueError(f"its splits are {', '.join(record['splits'])}")
    splits = {
        name: tuple(_checked(from_dict(Shard, shard)) for shard in shards)
        for name, shards in record["splits"].items()
    }
    return from_dict(Manifest, {**record, "splits": splits})


def _checked(shard: Shard) -> Shard:
    """The shard. Raises ValueError for rows that its bytes cannot hold."""
    if min(shard.row_groups, default=0) < 0 or shard.rows > shard.bytes:
        raise ValueError(f"{shard.path} has {shard.rows:,} rows in {shard.bytes:,} bytes")
    return shard


def _first(shards: tuple[Shard, ...], limit: int) -> tuple[Shard, ...]:
    first, rows_left = [], limit
    for shard in shards:
        groups = []
        for rows in shard.row_groups:
            groups.append(min(rows, rows_left))
            rows_left -= groups[-1]
        first.append(replace(shard, row_groups=tuple(rows for rows in groups if rows)))
    return tuple(shard for shard in first if shard.row_groups)


def write(manifest: Manifest, data: str) -> str:
    """Write `data`/manifest.json and return its URI. Call it after all shards are written."""
    uri = storage.join(data, NAME)
    storage.write_bytes(uri, manifest.to_json())
    return uri


def load(data: str) -> Manifest:
    """Read the manifest of the data set in folder `data` (or a manifest.json itself).

    Raises DatasetError if it is missing, not a manifest, or does not match its own fingerprint.
    """
    uri = data if data.endswith(".json") else storage.join(data, NAME)
    try:
        raw = storage.read_bytes(uri)
    except BucketNotFoundError:
        raise
    except NotFoundError as error:
        raise DatasetError(_describe_missing(data)) from error
    try:
        record = safe_json.parse(raw)
        fingerprint = record.pop("fingerprint")
        _check_version(uri, record.pop("version"))
        manifest = _from_record(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecipeError) as error:
        raise DatasetError(f"{uri} is not an effnet_ray manifest ({error}): pack again") from error
    if fingerprint != manifest.fingerprint:
        raise DatasetError(
            f"{uri} was altered: its content does not match its fingerprint: pack again"
        )
    return manifest


@contextmanager
def consistent(data: str) -> Iterator[None]:
    """Raises DatasetError for what files beside the manifest raise that do not fit it.

    Reports and tables of images have no digest in the manifest.
    """
    try:
        yield
    except INVALID_CONTENT as error:
        raise DatasetError(
            f"the files of {data} do not fit its manifest ({quote(error)}): restore them from a "
            "copy, or pack again"
        ) from error


def is_manifest(uri: str) -> bool:
    """Whether a file is a data set's manifest, perhaps damaged, and not another program's."""
    try:
        content = safe_json.parse(storage.read_bytes(uri))
    except ValueError:
        return True
    return isinstance(content, dict) and bool({"fingerprint", "splits"} & content.keys())


def _check_version(uri: str, version: object) -> None:
    if version != VERSION:
        raise DatasetError(
            f"{uri} has format version {version!r}, expected {VERSION}: pack again, or use the "
            "version of effnet_ray that packed it"
        )


def _describe_missing(data: str) -> str:
    """What is at the URI of a data set that has no manifest, and what to do."""
    parent, _, name = data.rpartition("/")
    if name.startswith("manifest."):
        if name != NAME:
            return f"{data} is not a manifest: pass the data set's folder, or its {NAME}"
        return _describe_missing(parent)
    files = len(storage.sizes(data))
    if not files:
        return f"no data set at {data}: check the path, or create it with `effnet-ray pack`"
    return (
        f"{data} has {files:,} files but no {NAME}: finish an interrupted packing; or pack its "
        f"images: effnet-ray pack --source {data} --out {data}-packed, then pass --data "
        f"{data}-packed"
    )


def check_trainable(manifest: Manifest, data: str) -> None:
    """Check that a run can train on the data set, before it requests machines.

    Raises DatasetError for an empty split, fewer than two classes, and as `check_shards` does.
    """
    for split in ("train", "eval"):
        if not manifest.images.get(split):
            raise DatasetError(f"{data} has no {split} images: pack a source with more images")
    if len(manifest.classes) < 2:
        raise DatasetError(
            f"{data} has one class ({', '.join(manifest.classes)}): a classifier needs two or more"
        )
    check_shards(manifest, data)


def check_shards(manifest: Manifest, data: str, split: str = "") -> None:
    """Check the stored shards of one split or all against the manifest.

    Raises DatasetError for a shard that is missing, or whose size or (in small data sets) digest
    differs.
    """
    sizes = storage.sizes(folder(data))
    splits = [manifest.splits[split]] if split else manifest.splits.values()
    shards = [shard for split_shards in splits for shard in split_shards]
    for shard in shards:
        if shard.path not in sizes:
            raise DatasetError(
                f"shard {shard.path} of {data} is missing: restore it from a copy, or pack again"
            )
        if sizes[shard.path] != shard.bytes:
            raise DatasetError(
                f"shard {shard.path} of {data} was altered: it has {sizes[shard.path]:,} bytes, "
                f"the manifest lists {shard.bytes:,}: restore it from a copy, or pack again"
            )
    packed = [shard for shard in shards if not shard.digests]
    if sum(shard.bytes for shard in packed) <= FULL_CHECK_BYTES:
        _check_digests(packed, data)


def _check_digests(shards: list[Shard], data: str) -> None:
    for shard in shards:
        raw = storage.read_bytes(storage.join(folder(data), shard.path))
        if hashlib.sha256(raw).hexdigest() != shard.sha256:
            raise DatasetError(
                f"shard {shard.path} of {data} was altered: its SHA-256 does not match the "
                "manifest: restore it from a copy, or pack again"
            )


def folder(data: str) -> str:
    """The folder of a data set that is given as a folder or as the URI of its manifest."""
    return data.removesuffix(f"/{NAME}")
