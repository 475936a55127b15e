"""Lists the images of a source, whatever its form.

    a folder of class folders            cats/1.jpg, or train/cats/1.jpg
    a CSV or Parquet table               of paths and labels
    Parquet with the images in it        Hugging Face's layout: `image` {bytes, path}, `label`
    WebDataset tars                      0001.jpg beside 0001.cls or 0001.json

Only archives are read for the listing; of images in files of their own the size is enough.
"""

import itertools
from collections.abc import Iterable, Mapping, Set

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data import classes, hf_parquet, manifest as manifests
from effnet_ray.data.image_files import IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError, StorageError
from effnet_ray.packing import archives, tables
from effnet_ray.packing.archive_job import ArchiveJob
from effnet_ray.packing.class_folders import index_class_folders
from effnet_ray.packing.listing import (
    HIDDEN,
    WORK_FOLDER,
    Index,
    Listing,
    Map,
    check_unique,
    is_hidden,
    normalize_splits,
    replace_column,
    set_aside,
    split_by_file_name,
    split_off_set_aside,
)
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.source_labels import separator_note
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values


def list_images(source: str, columns: SourceColumns, out: str, map_function: Map) -> Listing:
    """List the images of the source. `out` is the future data set, which is not listed.

    Raises DatasetError for a source without images, or with invalid labels or splits.
    """
    make = _index_file if source.lower().endswith(tables.SUFFIXES) else _index_folder
    index = make(source, columns, out, map_function)
    names = classes.read_class_names(columns.classes) if columns.classes else index.classes
    images, others = split_off_set_aside(index.entries)
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
    note = columns.separator and separator_note(class_names, labels, columns.separator)
    return Listing(
        class_names,
        replace_column(images, "split", splits),
        set_aside=others,
        without_images=index.without_images,
        notes=(note,) if note else (),
    )


def has_archives(source: str) -> bool:
    """Whether the images are in archives, which are read for the listing."""
    if source.lower().endswith(tables.SUFFIXES):
        return source.lower().endswith(".parquet") and _holds_images(source, SourceColumns())
    return any(path.lower().endswith(archives.SUFFIXES) for path in storage.sizes(source))


def _index_file(source: str, columns: SourceColumns, out: str, map_function: Map) -> Index:
    """Index a table of paths and labels, or one Parquet file of images."""
    if source.lower().endswith(".parquet") and _holds_images(source, columns):
        folder, _, name = source.rpartition("/")
        size = tables.file_entries([source], source)[source].size
        return _index_archives(folder, {name: size}, columns, out, map_function)
    return Index(tables.index_table(source, columns))


def _holds_images(source: str, columns: SourceColumns) -> bool:
    """Whether a Parquet file contains images: not their paths, beside which bytes are others."""
    schema = parquet.read_schema(source)
    image = hf_parquet.image_column(schema)
    return image == "image" or bool(image and columns.path_column not in schema.names)


def _index_folder(source: str, columns: SourceColumns, out: str, map_function: Map) -> Index:
    """Index a folder of archives, or else of class folders."""
    if storage.local_entry(source):
        raise DatasetError(
            f"{source} is a file: expected a folder, or a CSV, TSV or Parquet table"
        )
    sizes = _list_files(source, out)
    in_archives = {
        path: size
        for path, size in sizes.items()
        if path.lower().endswith(archives.SUFFIXES) and not is_hidden(path)
    }
    if not in_archives:
        return index_class_folders(source, sizes, columns, out)
    beside = _set_aside_beside(source, in_archives, sizes.keys() - in_archives.keys())
    index = _index_archives(source, in_archives, columns, out, map_function)
    return index._replace(entries=pa.concat_tables([index.entries, beside]))


def _list_files(source: str, out: str) -> dict[str, int]:
    """Bytes of every file by its path below the source; hidden ones too, but none of `out`."""
    entries = storage.entries(source, hidden=True, follow_links=True)
    if not entries and not storage.exists(source):
        raise DatasetError(f"source {source} does not exist: check the path")
    _refuse_undecodable_names(source, entries)
    if manifests.NAME in entries and _is_packed(source):
        raise DatasetError(f"{source} is packed already: pass it as --data")
    inside = f"{out}/"
    return {
        path: entry.size
        for path, entry in entries.items()
        if not f"{source}/{path}".startswith(inside)
    }


def _is_packed(source: str) -> bool:
    """Whether the folder is a packed data set, not shards with a manifest in place."""
    if not manifests.is_manifest(storage.join(source, manifests.NAME)):
        return False
    return "listing" in manifests.load(source).made_from


def _refuse_undecodable_names(source: str, paths: Iterable[str]) -> None:
    """Raise DatasetError for a name that is not UTF-8: manifests and reports could not hold it."""
    for path in paths:
        if not path.isascii() and path != (name := path.encode(errors="replace").decode()):
            raise DatasetError(
                f"{source} has a file whose name is not valid UTF-8 ({name}): rename it"
            )


def _set_aside_beside(source: str, in_archives: Mapping[str, int], paths: Set[str]) -> pa.Table:
    """Index the files beside archives. Raises DatasetError for images in folders among them."""
    images = (p for p in paths if "/" in p and p.lower().endswith(IMAGE_SUFFIXES))
    image = min(itertools.filterfalse(is_hidden, images), default="")
    if image:
        raise DatasetError(
            f"{source} has the archive {min(in_archives)} and, beside archives, images in folders "
            f"({image}): pass the folder with one of the two as --source"
        )
    return set_aside({p: HIDDEN if is_hidden(p) else "beside the archives" for p in paths})


def _index_archives(
    source: str, sizes: Mapping[str, int], columns: SourceColumns, out: str, map_function: Map
) -> Index:
    """Index a folder's archives; `sizes` are their bytes by path."""
    columns = archives.with_label_column(source, list(sizes), columns)
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
    entries = pa.concat_tables(map_function(archives.index_archive, jobs))
    if entries["set_aside"].null_count == 0:
        raise DatasetError(
            f"no images in the {len(sizes)} archives of {source}: expected Parquet with images or "
            "WebDataset tars"
        )
    return Index(entries if columns.split_column else split_by_file_name(entries), names)


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
