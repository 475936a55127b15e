"""Images to predict: finding them in storage, and reading their bytes.

    a folder of image files, at any depth, or one file
    a packed data set                                     its manifest lists the shards
    Parquet with an `image` column                        Hugging Face's layout

A *unit* is what a task reads at once: some files, or a row group. Labels are ignored.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache

from effnet_ray import storage
from effnet_ray.data import hf_parquet, image_checks, manifest as manifests
from effnet_ray.data.hf_parquet import LARGEST_GROUP
from effnet_ray.data.image_files import DECODABLE_SUFFIXES, find_image_files
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.parquet_reads import read_row_groups
from effnet_ray.data.row_group import RowGroup
from effnet_ray.errors import DatasetError, ImageError, NotFoundError, StorageError
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

UNIT_FILES = 64
"""Image files in a unit: as many as in a row group of a packed data set."""
READ_THREADS = 16
"""Image files that one task reads at a time; reading is mostly waiting for storage."""

ImageBytes = tuple[str, bytes | ImageError]
"""An image's path, and its bytes or why there are none."""


@dataclass(frozen=True, slots=True)
class ImageUnit:
    """The images that one task reads at a time. Field names are part of `ImageSource.digest`."""

    images: int
    files: tuple[tuple[str, int], ...] = ()
    """Image files: path below the source, and bytes."""
    shard: str = ""
    """Parquet file: path below the source."""
    split: str = ""
    """Split of a packed data set."""
    group: int = 0
    """Number of the row group: in the Parquet file, or in the split of a packed data set."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The images at one URI."""

    uri: str
    units: tuple[ImageUnit, ...]
    manifest: Manifest | None = None
    """The manifest of a packed data set; None for other sources."""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(unit.images for unit in self.units)

    @property
    def digest(self) -> str:
        """SHA-256 of the list of units, and of a packed data set's fingerprint."""
        content = [asdict(unit) for unit in self.units]
        if self.manifest:
            content.append({"fingerprint": self.manifest.fingerprint})
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def parts(self, min_images: int) -> list[list[ImageUnit]]:
        """The units in order, in groups that each end once they have `min_images`."""
        parts, size = list[list[ImageUnit]](), min_images
        for unit in self.units:
            if size >= min_images:
                parts.append([])
                size = 0
            parts[-1].append(unit)
            size += unit.images
        return parts

    def read(self, unit: ImageUnit) -> Iterator[ImageBytes]:
        """Path and bytes of every image of a unit.

        Raises DatasetError if a shard has changed, StorageError if storage fails.
        """
        if self.manifest:
            return _read_packed(self.manifest, manifests.folder(self.uri), unit)
        return _read_parquet(self.uri, unit) if unit.shard else _read_files(self.uri, unit)


def find_images(uri: str, split: str = "") -> ImageSource:
    """The images at a URI; of a packed data set one `split`, or all of them.

    Raises DatasetError if there are none, or none in a supported format.
    """
    uri = storage.absolute(uri)
    if uri.endswith(f"/{manifests.NAME}") or storage.exists(storage.join(uri, manifests.NAME)):
        return _packed_source(manifests.folder(uri), split)
    if split:
        raise DatasetError(f"--split needs a packed data set, but {uri} is not one: omit --split")
    folder, sizes = _list_files(uri)
    images = find_image_files(folder, sizes, sizes)
    image_files = [(path, size) for path, size in sizes.items() if path in images]
    units = [
        unit
        for path in sizes
        if path.lower().endswith(".parquet")
        for unit in _parquet_units(folder, path, required=not image_files)
    ]
    for first in range(0, len(image_files), UNIT_FILES):
        files = tuple(image_files[first : first + UNIT_FILES])
        units.append(ImageUnit(len(files), files))
    if not units:
        raise DatasetError(
            f"no images in {uri} ({len(sizes)} files): expected "
            f"{', '.join(DECODABLE_SUFFIXES)} files, a data set packed with `effnet-ray pack`, or "
            "Parquet with an image column"
        )
    return ImageSource(folder, tuple(units))


def _list_files(uri: str) -> tuple[str, dict[str, int]]:
    """A folder and the sizes of its files; for the URI of a file, its folder and its size."""
    with suppress(StorageError):  # a local file cannot be listed; other errors are raised below
        sizes = storage.sizes(uri)
        if sizes or storage.is_local_folder(uri):
            return uri, sizes
    if not storage.exists(uri):
        storage.sizes(uri)  # raises if the bucket is missing or cannot be listed
        raise DatasetError(f"source {uri} does not exist: check the path")
    folder, _, name = uri.rpartition("/")
    is_parquet = name.lower().endswith(".parquet")  # read in parts, so its size does not matter
    return folder, {name: 0 if is_parquet else len(storage.read_bytes(uri))}


def _packed_source(folder: str, split: str) -> ImageSource:
    manifest = manifests.load(folder)
    if split and not manifest.images.get(split):
        available = ", ".join(name for name, images in manifest.images.items() if images)
        raise DatasetError(f"{folder} has no {split} images: choose --split from {available}")
    units = (
        ImageUnit(rows, split=name, group=group)
        for name in ([split] if split else manifest.splits)
        for group, rows in enumerate(manifest.index(name).sizes.tolist())
    )
    return ImageSource(folder, tuple(units), manifest)


def _parquet_units(folder: str, path: str, *, required: bool) -> Iterator[ImageUnit]:
    """The row groups of a Parquet file.

    `required`: the folder has no image files, so a file without an image column is an error.
    """
    footer = _read_footer(storage.join(folder, path))
    if not hf_parquet.image_column(footer.schema.to_arrow_schema()):
        if not required:
            return
        raise DatasetError(
            f"{path} of {folder} has no column `image` {{bytes, path}}, and not one of bytes "
            "alone: use image files, or Parquet in Hugging Face's image layout"
        )
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        if row_group.total_byte_size > LARGEST_GROUP:
            raise DatasetError(
                f"{path} of {folder} has a row group of {row_group.total_byte_size / 1e6:,.0f} "
                f"MB; at most {LARGEST_GROUP / 1e6:,.0f} MB are supported: write the file with "
                "smaller row groups, or pack it"
            )
        if row_group.num_rows:
            yield ImageUnit(row_group.num_rows, shard=path, group=group)


def _read_packed(manifest: Manifest, data: str, unit: ImageUnit) -> Iterator[ImageBytes]:
    group = RowGroup(manifest, data, unit.split, unit.group, limited=False)
    for row in range(unit.images):
        record = group.record(row)
        yield record.path, record.data


def _read_parquet(source: str, unit: ImageUnit) -> Iterator[ImageBytes]:
    uri = storage.join(source, unit.shard)
    footer = _read_footer(uri)
    column = hf_parquet.image_column(footer.schema.to_arrow_schema())
    with parquet.errors(uri):
        table = read_row_groups(uri, [unit.group], footer, columns=[column])
        images = column_values(table, column)
    for row, image in enumerate(images):
        data, name_in_row = hf_parquet.image_value(image)
        name = "/".join(filter(None, (f"{unit.group}", f"{row}", name_in_row)))
        yield f"{unit.shard}#{name}", data or ImageError("the row has no image bytes")


def _read_files(source: str, unit: ImageUnit) -> Iterator[ImageBytes]:
    def read(file: tuple[str, int]) -> ImageBytes:
        path, size = file
        name = _as_text(path)
        try:
            image_checks.check_file_size(size)
            return name, storage.read_bytes(storage.join(source, path), size)
        except ImageError as error:
            return name, error
        except NotFoundError as error:
            return name, ImageError(str(error))

    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from list(pool.map(read, unit.files))


def _as_text(path: str) -> str:
    """A file's path as valid text; on a disk it may be any bytes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_read_footer = lru_cache(maxsize=64)(parquet.read_footer)
