"""The index of a folder with one folder per class, or one per split with one per class in it.

    cats/1.jpg        train/cats/1.jpg

Files in folders of a class folder belong to the class too. Every file is listed: one that is no
image, or hidden, is set aside with the reason.
"""

from collections.abc import Mapping, Sequence, Set

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.image_files import DECODABLE_SUFFIXES, find_image_files
from effnet_ray.errors import DatasetError
from effnet_ray.packing.listing import (
    HIDDEN,
    SPLIT_NAMES,
    Index,
    is_hidden,
    make_index,
    set_aside,
    suffix_of,
)
from effnet_ray.packing.options import SourceColumns


def index_class_folders(
    source: str, sizes: Mapping[str, int], columns: SourceColumns, out: str
) -> Index:
    """Index the files below `source`; `sizes` are their bytes by path.

    Raises DatasetError if the classes are not clear, or if one has no file (unless
    `columns.allow_empty_classes`).
    """
    _refuse_table_flags(columns, source)
    visible = [path for path in sizes if not is_hidden(path)]
    images = find_image_files(source, visible, sizes)
    paths = [path for path in visible if path in images and "/" in path]
    _refuse_without_class_folders(source, len(visible), len(images), paths)
    # A source has millions of files, but few folders: those tell all about its structure.
    folders = sorted({path.rpartition("/")[0] for path in paths})
    parts = [folder.split("/") for folder in folders]
    _refuse_one_level_too_high(source, parts)
    by_split = all(names[0].lower() in SPLIT_NAMES for names in parts)
    if not by_split:
        _refuse_folders_beside_splits(source, parts)
    _refuse_loose_images(source, images, by_split=by_split)
    label = {folder: names[by_split] for folder, names in zip(folders, parts, strict=True)}
    split = {folder: names[0] for folder, names in zip(folders, parts, strict=True)}
    index = make_index(
        {
            "path": paths,
            "file": [storage.join(source, path) for path in paths],
            "bytes": [sizes[path] for path in paths],
            "label": [label[path.rpartition("/")[0]] for path in paths],
            "split": [split[path.rpartition("/")[0]] for path in paths] if by_split else None,
        }
    )
    reasons = {path: _reason(path) for path in sizes if path not in images}
    without_images = _folders_without_images(source, sizes, parts, columns, out)
    return Index(
        pa.concat_tables([index, set_aside(reasons)]), without_images=tuple(without_images)
    )


def _reason(path: str) -> str:
    """Why the file is set aside."""
    return HIDDEN if is_hidden(path) else f"not an image ({suffix_of(path)})"


def _refuse_table_flags(columns: SourceColumns, source: str) -> None:
    """Raise DatasetError for options that class folders cannot satisfy."""
    if columns.separator:
        raise DatasetError(
            f"{source} is a folder of class folders, where each image has one class: for --task "
            "multilabel pass a table, Parquet or WebDataset tars as --source"
        )
    for flag in ("group_column", "split_column", "keep_columns"):
        if getattr(columns, flag):
            raise DatasetError(
                f"--{flag.replace('_', '-')} needs a table, but {source} is a folder of class "
                "folders: pass a CSV of paths and labels as --source"
            )


def _refuse_without_class_folders(
    source: str, files: int, images: int, paths: Sequence[str]
) -> None:
    """Raise DatasetError if no image is in a folder; `paths` are the images that are."""
    if images and not paths:
        raise DatasetError(
            f"{images:,} images lie directly in {source}: pass the folder that contains the class "
            f"folders ({source.rpartition('/')[0]})"
        )
    if not paths:
        raise DatasetError(
            f"no images in {source} ({files} files): expected one folder per class, each "
            f"with {', '.join(DECODABLE_SUFFIXES)} files; or a CSV table, Parquet or WebDataset "
            "tars"
        )


def _refuse_one_level_too_high(source: str, parts: Sequence[Sequence[str]]) -> None:
    """Raise DatasetError if the class folders or splits are all in one folder.

    `parts` are the names in the path of each folder that has images; so in what follows.
    """
    common = list[str]()
    while len({names[len(common)] for names in parts}) == 1 and (
        min(map(len, parts)) > len(common) + 1 and parts[0][len(common)].lower() not in SPLIT_NAMES
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
    splits = [name for name in depths if name.lower() in SPLIT_NAMES and depths[name] > 0]
    if len(splits) > 1 or any(SPLIT_NAMES[name.lower()] == "train" for name in splits):
        other = next(name for name in depths if name.lower() not in SPLIT_NAMES)
        raise DatasetError(
            f"{source} has the split {splits[0]}/ and, beside it, images in {other}/, which is no "
            f"split: move {other}/ elsewhere; or, if {splits[0]} is a class, rename it"
        )


def _refuse_loose_images(source: str, images: set[str], *, by_split: bool) -> None:
    """Raise DatasetError for an image outside of class folders."""
    loose = min((path for path in images if path.count("/") < 1 + by_split), default="")
    if loose:
        raise DatasetError(
            f"{source} has images outside of class folders, for example {loose}: move them into "
            "their class folders, or remove them"
        )


def _first(path: str, depth: int) -> str:
    """The first so many parts of a path."""
    return "/".join(path.split("/", depth)[:depth])


def _folders_without_images(
    source: str,
    sizes: Mapping[str, int],
    parts: Sequence[Sequence[str]],
    columns: SourceColumns,
    out: str,
) -> list[str]:
    """Folders next to the class folders without an image in them.

    Raises DatasetError for a folder without any file, if no other folder has images of that
    class: it would be one class less than the source has.
    """
    depth = 2 if all(names[0].lower() in SPLIT_NAMES for names in parts) else 1
    with_images = {"/".join(names[:depth]) for names in parts}
    with_files, with_visible_files = set[str](), set[str]()
    for path in sizes:
        if path.count("/") >= depth:
            (with_files if is_hidden(path) else with_visible_files).add(_first(path, depth))
    only_hidden = with_files - with_visible_files  # such as macOS's __MACOSX
    result = [
        folder
        for folder in _folders(source, {"/".join(names[: depth - 1]) for names in parts})
        if folder not in with_images | only_hidden
        and not is_hidden(folder)
        and not f"{out}/".startswith(f"{storage.join(source, folder)}/")
    ]
    if not columns.allow_empty_classes:
        labels = {names[depth - 1] for names in parts}
        empty = [folder for folder in result if folder not in with_visible_files]
        _refuse_empty_classes(source, empty, labels)
    return result


def _folders(source: str, parents: Set[str]) -> list[str]:
    """Paths of the folders in each of the parents; "" is the source itself."""
    return sorted(
        storage.join(parent, name) if parent else name
        for parent in parents
        for name in storage.folders(storage.join(source, parent) if parent else source)
    )


def _refuse_empty_classes(source: str, empty: Sequence[str], labels: Set[str]) -> None:
    """Raise DatasetError for an empty folder of a class that is not in `labels`."""
    for folder in empty:
        name = folder.rpartition("/")[2]
        if name not in labels:
            raise DatasetError(
                f"{storage.join(source, folder)} is empty: add images of the class {name!r}, "
                "delete the folder, or run again with --allow-empty-classes to leave the class out"
            )
