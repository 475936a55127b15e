"""Images to be predicted, wherever they lie: what there is, and their bytes.

    a folder of pictures, of any depth; or one picture
    a data set of ours                     its manifest names the shards
    Parquet with an `image` column         Hugging Face's layout

A *unit* is what is read at once: some pictures, or a row group. Labels are not looked at.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import hf_parquet, manifest as manifests
from effnet_ray.data.decode import DECODABLE_SUFFIXES, IMAGE_SUFFIXES
from effnet_ray.data.hf_parquet import LARGEST_GROUP
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.row_group import RowGroup
from effnet_ray.errors import DatasetError, ImageError, NotFoundError, StorageError
from effnet_ray.storage import parquet

MAX_BYTES = 200_000_000
"""Of a picture: 89 million pixels, the most that are decoded, in an uncompressed file."""
AT_ONCE = 64
"""Pictures of a unit, and of what is read at a time."""
READERS = 16
"""Pictures read at a time by one task: each waits for a round trip most of it."""


@dataclass(frozen=True, slots=True)
class ImageUnit:
    """What one task reads at a time."""

    images: int
    files: tuple[tuple[str, int], ...] = ()
    """Of pictures: path below the source, and bytes."""
    shard: str = ""
    """Of Parquet: the file, below the source."""
    split: str = ""
    """Of a data set of ours."""
    group: int = 0
    """The row group's number in the shard; in the split, of a data set of ours."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Images of one place."""

    uri: str
    units: tuple[ImageUnit, ...]
    manifest: Manifest | None = None

    @property
    def images(self) -> int:
        """Of all units."""
        return sum(unit.images for unit in self.units)

    @property
    def digest(self) -> str:
        """SHA-256 of what is to be read."""
        told = [asdict(unit) for unit in self.units]
        if self.manifest:
            told.append({"fingerprint": self.manifest.fingerprint})
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def parts(self, most: int) -> list[list[ImageUnit]]:
        """The units in their order, about `most` images at a time."""
        found, held = list[list[ImageUnit]](), most
        for unit in self.units:
            if held >= most:
                found.append([])
                held = 0
            found[-1].append(unit)
            held += unit.images
        return found

    def read(self, unit: ImageUnit) -> Iterator[tuple[str, bytes | ImageError]]:
        """Path and bytes of every image of a unit, or why there are none.

        Raises DatasetError where a shard is not what it was, StorageError where storage fails.
        """
        if self.manifest:
            return _packed(self.manifest, manifests.folder(self.uri), unit)
        return _rows(self.uri, unit) if unit.shard else _pictures(self.uri, unit)


def find_images(uri: str, split: str = "") -> ImageSource:
    """What is at the URI; of a data set of ours one `split`, or all.

    Raises DatasetError where there are no images, or in a form that is not read.
    """
    uri = storage.absolute(uri)
    if uri.endswith(f"/{manifests.NAME}") or storage.exists(storage.join(uri, manifests.NAME)):
        return _data_set(manifests.folder(uri), split)
    if split:
        raise DatasetError(f"{uri} is no data set of ours, which alone has splits: leave --split")
    folder, sizes = _files(uri)
    shards = [path for path in sizes if path.lower().endswith(".parquet")]
    pictures = {
        path: size for path, size in sizes.items() if path.lower().endswith(IMAGE_SUFFIXES)
    }
    units = [unit for path in shards for unit in _shard(folder, path, alone=not pictures)]
    files = list(pictures.items())
    cut = (tuple(files[first : first + AT_ONCE]) for first in range(0, len(files), AT_ONCE))
    units += [ImageUnit(len(some), some) for some in cut]
    if not units:
        raise DatasetError(
            f"no images at {uri} ({len(sizes)} files): expected "
            f"{', '.join(DECODABLE_SUFFIXES)} files, a data set of "
            "`jobs/pack.py`, or Parquet with an image column"
        )
    return ImageSource(folder, tuple(units))


def _files(uri: str) -> tuple[str, dict[str, int]]:
    """A folder and its files' sizes, or a file's folder and its own."""
    with suppress(StorageError):  # a file on a disk has no list; what else is wrong is told below
        found = storage.sizes(uri)
        if found:
            return uri, found
    if not storage.exists(uri):
        return uri, storage.sizes(uri)
    folder, _, own = uri.rpartition("/")
    whole = own.lower().endswith(".parquet")  # of which only parts are read
    return folder, {own: 0 if whole else len(storage.read_bytes(uri))}


def _data_set(folder: str, split: str) -> ImageSource:
    manifest = manifests.load(folder)
    if split and not manifest.images.get(split):
        have = ", ".join(name for name, images in manifest.images.items() if images)
        raise DatasetError(f"{folder} has no {split} images: choose --split of {have}")
    units = (
        ImageUnit(rows, split=name, group=group)
        for name in ([split] if split else manifest.splits)
        for group, (*_, rows) in enumerate(manifest.row_groups(name))
    )
    return ImageSource(folder, tuple(units), manifest)


def _shard(folder: str, path: str, *, alone: bool) -> Iterator[ImageUnit]:
    """`alone`: no pictures lie beside it, so that it must hold some."""
    footer = _footer(storage.join(folder, path))
    if not hf_parquet.holds_images(footer.schema.to_arrow_schema()):
        if not alone:
            return
        raise DatasetError(
            f"{path} of {folder} has no column `image` {{bytes, path}}: give pictures, or Parquet "
            "in Hugging Face's image layout"
        )
    for group in range(footer.num_row_groups):
        told = footer.row_group(group)
        if told.total_byte_size > LARGEST_GROUP:
            raise DatasetError(
                f"{path} of {folder} has a row group of {told.total_byte_size / 1e6:,.0f} MB, "
                "which would be read as a whole: write it with smaller ones, or pack it"
            )
        if told.num_rows:
            yield ImageUnit(told.num_rows, shard=path, group=group)


def _packed(
    manifest: Manifest, data: str, unit: ImageUnit
) -> Iterator[tuple[str, bytes | ImageError]]:
    group = RowGroup(manifest, data, unit.split, unit.group, limited=False)
    for row in range(unit.images):
        record = group.record(row)
        yield record.path, record.data


def _rows(source: str, unit: ImageUnit) -> Iterator[tuple[str, bytes | ImageError]]:
    uri = storage.join(source, unit.shard)
    filesystem, path = storage.arrow_filesystem(uri)
    footer = _footer(uri)

    def fetch() -> Any:
        with pq.ParquetFile(path, filesystem=filesystem, metadata=footer, pre_buffer=True) as file:
            return file.read_row_group(unit.group, columns=["image"])["image"].to_pylist()

    with _readable(uri):
        images = storage.read_with_retries(
            uri, fetch, footer.row_group(unit.group).total_byte_size
        )
    for number, image in enumerate(images):
        known = image or {}
        name = "/".join(filter(None, (f"{unit.group}", f"{number}", known.get("path"))))
        missing = ImageError("the row has no bytes")
        yield f"{unit.shard}#{name}", known.get("bytes") or missing


def _pictures(source: str, unit: ImageUnit) -> Iterator[tuple[str, bytes | ImageError]]:
    def read(file: tuple[str, int]) -> bytes | ImageError:
        uri = storage.join(source, file[0])
        if file[1] > MAX_BYTES:
            return ImageError(f"has {file[1]:,} bytes, more than {MAX_BYTES:,}")
        try:
            return storage.read_bytes(uri, file[1])
        except NotFoundError as error:
            return ImageError(str(error))

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, unit.files))
    yield from zip((_shown(path) for path, _ in unit.files), found, strict=True)


def _shown(path: str) -> str:
    """A file's name as text: on a disk it may be any bytes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@lru_cache(maxsize=64)
def _footer(uri: str) -> pq.FileMetaData:
    with _readable(uri):
        return parquet.read_footer(uri)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Raises DatasetError for Parquet that is none."""
    try:
        yield
    except pa.ArrowException as error:
        why = " ".join(str(error).split())[:200]
        raise DatasetError(f"{uri} cannot be read ({why}): copy it there again") from error
