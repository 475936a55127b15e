"""Lists the images of a source, whatever its form.

    a folder of class folders            cats/1.jpg, or train/cats/1.jpg
    a CSV or Parquet table               of paths and labels
    Parquet with the images in it        Hugging Face's layout: `image` {bytes, path}, `label`
    WebDataset tars                      0001.jpg beside 0001.cls or 0001.json

Only archives are read for the listing; of images in files of their own the size is enough.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data import classes, hf_parquet, manifest as manifests
from effnet_ray.data.decode import DECODABLE_SUFFIXES, IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError, StorageError
from effnet_ray.packing import archives, tables
from effnet_ray.packing.archive_job import ArchiveJob
from effnet_ray.packing.listing import (
    SPLIT_NAMES,
    WORK_FOLDER,
    Listing,
    Map,
    check_unique,
    make_index,
    normalize_splits,
    replace_column,
    split_by_file_name,
)
from effnet_ray.packing.options import SourceColumns
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values


class Index(NamedTuple):
    """A source's images, one row each."""

    images: pa.Table
    classes: Sequence[str] | None = None
    """The class names, if the source's files contain them."""
    ignored: tuple[str, ...] = ()
    """As in `Listing`."""


def list_images(source: str, columns: SourceColumns, out: str, map_function: Map) -> Listing:
    """List the images of the source. `out` is the future data set, which is not listed.

    Raises DatasetError for a source without images, or with invalid labels or splits.
    """
    if source.lower().endswith(tables.SUFFIXES):
        images, names, ignored = _index_file(source, columns, out, map_function)
    else:
        images, names, ignored = _index_folder(source, columns, out, map_function)
    if columns.classes:
        names = classes.read_class_names(columns.classes)
    images = images.sort_by("path")
    check_unique(column_values(images, "path"), source)
    class_names, labels = classes.encode_labels(
        column_values(images, "label"),
        names,
        columns.task,
        source,
        merge_similar=columns.merge_similar_classes,
    )
    if len(class_names) < 2:
        count = f"one class ({class_names[0]})" if class_names else "no class"
        raise DatasetError(f"{source} has {count}: a classifier needs two or more")
    splits = normalize_splits(column_values(images, "split"), source)
    images = replace_column(images, "label", labels)
    return Listing(class_names, replace_column(images, "split", splits), ignored)


def _index_file(source: str, columns: SourceColumns, out: str, map_function: Map) -> Index:
    """Index a table of paths and labels, or one Parquet file of images."""
    is_parquet = source.lower().endswith(".parquet")
    if is_parquet and hf_parquet.holds_images(parquet.read_schema(source)):
        folder, _, name = source.rpartition("/")
        (size,) = tables.file_sizes([source], source)
        return _index_archives(folder, {name: size}, columns, out, map_function)
    return Index(tables.index_table(source, columns))


def _index_folder(source: str, columns: SourceColumns, out: str, map_function: Map) -> Index:
    """Index a folder of archives, or else of class folders."""
    if Path(source).is_file():
        raise DatasetError(
            f"{source} is a file: expected a folder, or a CSV, TSV or Parquet table"
        )
    sizes = storage.sizes(source, follow_links=True)
    if not sizes and not storage.exists(source):
        raise DatasetError(f"source {source} does not exist: check the path")
    if manifests.NAME in sizes and "listing" in manifests.load(source).made_from:
        raise DatasetError(f"{source} is packed already: pass it as --data")
    sizes = {p: size for p, size in sizes.items() if not f"{source}/{p}".startswith(f"{out}/")}
    in_archives = {p: size for p, size in sizes.items() if p.lower().endswith(archives.SUFFIXES)}
    if in_archives:
        return _index_archives(source, in_archives, columns, out, map_function)
    _refuse_table_flags(columns, source)
    ignored = tuple(sorted(p for p in sizes if not p.lower().endswith(IMAGE_SUFFIXES)))
    return Index(_index_class_folders(source, sizes), ignored=ignored)


def _index_archives(
    source: str, sizes: Mapping[str, int], columns: SourceColumns, out: str, map_function: Map
) -> Index:
    """Index a folder's archives; `sizes` are their bytes by path."""
    names = archives.read_class_names(source, list(sizes), columns.label_column)
    jobs = [
        ArchiveJob(
            source=source,
            path=path,
            bytes=size,
            columns=columns,
            classes=names,
            spool=storage.join(out, WORK_FOLDER, "spool"),
        )
        for path, size in sizes.items()
    ]
    images = pa.concat_tables(map_function(archives.index_archive, jobs))
    if not len(images):
        raise DatasetError(
            f"no images in the {len(sizes)} archives of {source}: expected Parquet with images or "
            "WebDataset tars"
        )
    return Index(images if columns.split_column else split_by_file_name(images), names)


def _refuse_table_flags(columns: SourceColumns, source: str) -> None:
    """Raise DatasetError for options that class folders cannot satisfy."""
    if columns.separator:
        raise DatasetError(
            f"{source} is a folder of class folders, where each image has one class: for --task "
            "multilabel pass a table, Parquet or WebDataset tars as --source"
        )
    for flag in ("group_column", "split_column"):
        if getattr(columns, flag):
            raise DatasetError(
                f"--{flag.replace('_', '-')} needs a table, but {source} is a folder of class "
                "folders: pass a CSV of paths and labels as --source"
            )


def _index_class_folders(source: str, sizes: Mapping[str, int]) -> pa.Table:
    """Index one folder per class, or one folder per split with one per class in it."""
    paths = [p for p in sizes if "/" in p and p.lower().endswith(IMAGE_SUFFIXES)]
    loose = sum(p.lower().endswith(IMAGE_SUFFIXES) for p in sizes)
    if loose and not paths:
        raise DatasetError(
            f"{loose:,} images lie directly in {source}: pass the folder that contains the class "
            f"folders ({source.rpartition('/')[0]})"
        )
    if not paths:
        raise DatasetError(
            f"no images in {source} ({len(sizes)} files): expected one folder per class, each "
            f"with {', '.join(DECODABLE_SUFFIXES)} files; or a CSV table, Parquet or WebDataset "
            "tars"
        )
    parts = [path.split("/") for path in paths]
    _refuse_one_level_too_high(source, parts)
    by_split = all(p[0].lower() in SPLIT_NAMES for p in parts)
    if not by_split:
        _refuse_folders_beside_splits(source, parts)
    _refuse_loose_images(source, sizes, min(parts, key=len) if by_split else None)
    return make_index(
        {
            "path": paths,
            "file": [storage.join(source, path) for path in paths],
            "bytes": [sizes[path] for path in paths],
            "label": [p[1 if by_split else 0] for p in parts],
            "split": [p[0] for p in parts] if by_split else None,
        }
    )


def _refuse_one_level_too_high(source: str, parts: Sequence[Sequence[str]]) -> None:
    """Raise DatasetError if the class folders or splits are all in one folder."""
    common = list[str]()
    while len({names[len(common)] for names in parts}) == 1 and (
        min(map(len, parts)) > len(common) + 2 and parts[0][len(common)].lower() not in SPLIT_NAMES
    ):
        common.append(parts[0][len(common)])
    if common:
        folder = "/".join(common)
        raise DatasetError(
            f"all images of {source} are in folders of {folder}/: pass --source "
            f"{storage.join(source, folder)}"
        )


def _refuse_folders_beside_splits(source: str, parts: Sequence[Sequence[str]]) -> None:
    """Raise DatasetError for a folder beside the splits that is none, such as `unlabeled`.

    A folder is taken for a split if it has the name of one and folders with images in it, and if
    it is the train split or not the only one.
    """
    depths = dict[str, int]()
    for first, *rest in parts:
        depths[first] = max(len(rest), depths.get(first, 0))
    splits = [name for name in depths if name.lower() in SPLIT_NAMES and depths[name] > 1]
    if len(splits) > 1 or any(SPLIT_NAMES[name.lower()] == "train" for name in splits):
        other = next(name for name in depths if name.lower() not in SPLIT_NAMES)
        raise DatasetError(
            f"{source} has the split {splits[0]}/ and, beside it, images in {other}/, which is no "
            f"split: move {other}/ elsewhere; or, if {splits[0]} is a class, rename it"
        )


def _refuse_loose_images(
    source: str, sizes: Mapping[str, int], shortest: list[str] | None
) -> None:
    """Raise DatasetError for an image outside of class folders.

    `shortest` are the parts of the shortest path if the folders are splits.
    """
    loose = next((p for p in sizes if "/" not in p and p.lower().endswith(IMAGE_SUFFIXES)), None)
    if shortest and len(shortest) < 3:
        loose = "/".join(shortest)
    if loose:
        raise DatasetError(
            f"{source} has images outside of class folders, for example {loose}: move them into "
            "their class folders, or remove them"
        )


def read_image(file: str, offset: int, size: int) -> bytes:
    """Return an image's bytes. Raises DatasetError if the file changed since it was listed."""
    try:
        if offset >= 0:
            return storage.read_range(file, offset, size)
        return storage.read_bytes(file, size)
    except StorageError as error:
        raise DatasetError(
            f"{file} was deleted or became unreadable during packing: {error}"
        ) from error
