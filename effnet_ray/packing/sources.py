"""What a source holds: an index with one row per image, in whatever form the images come.

    a folder of class folders            cats/1.jpg, or train/cats/1.jpg
    a CSV or Parquet table               of paths and labels
    Parquet with the images in it        Hugging Face's layout: `image` {bytes, path}, `label`
    WebDataset tars                      0001.jpg beside 0001.cls or 0001.json

The index says where each image's bytes lie; nothing but archives is read for it.
"""

import hashlib
import io
import itertools
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import classes, hf_parquet
from effnet_ray.data.decode import DECODABLE_SUFFIXES, IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError, StorageError
from effnet_ray.packing import archives
from effnet_ray.packing.archives import table
from effnet_ray.packing.options import SourceColumns
from effnet_ray.storage.parquet import column_values

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("eval", "val", "valid", "validation", "dev"), "eval"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits."""

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Applies a function to items, here or all over a cluster; results in the items' order."""

WORK = "packing"
"""Folder of a data set with what packing needs only until the manifest stands."""

TABLE_BYTES = 256 * 1024**2
"""What is allowed for when a table of paths is read."""

TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class Listing:
    """A source's index."""

    classes: tuple[str, ...]
    images: pa.Table
    """`path` (unique, sorted), `file`, `offset`, `bytes`, `label` (index of the class, or a list
    of them), `group` and `split` (null where not given). A row's number is its image's id."""

    @property
    def digest(self) -> str:
        """SHA-256 of what is listed, wherever it lies."""
        sha = hashlib.sha256(json.dumps(self.classes).encode())
        for name in ("path", "bytes", "label", "group", "split"):
            sha.update(json.dumps(column_values(self.images, name)).encode())
        return sha.hexdigest()


def find(source: str, columns: SourceColumns, out: str, each: Map) -> Listing:
    """Index the source. `out` is where the data set will be: what lies there is no source.

    Raises DatasetError for a source without images, or whose labels or splits cannot be read.
    """
    if source.lower().endswith(TABLES):
        images, known = _table(source, columns, out, each)
    else:
        images, known = _folder(source, columns, out, each)
    if columns.classes:
        known = classes.read_class_names(columns.classes)
    images = images.sort_by("path")
    _check_unique(column_values(images, "path"), source)
    names, label = classes.encode_labels(
        column_values(images, "label"), known, columns.task, source
    )
    if len(names) < 2:
        few = f"one class ({names[0]})" if names else "no class"
        raise DatasetError(f"{source} has {few}: a classifier needs two or more")
    split = _splits(column_values(images, "split"), source)
    images = _replaced(_replaced(images, "label", label), "split", split)
    return Listing(names, images)


def _replaced(images: pa.Table, name: str, column: Any) -> pa.Table:
    return images.set_column(images.schema.get_field_index(name), name, column)


def _folder(
    source: str, columns: SourceColumns, out: str, each: Map
) -> tuple[pa.Table, Sequence[str] | None]:
    """Index of a folder, and the class names where its files tell them."""
    found = storage.sizes(source)
    if not found and not storage.exists(source):
        raise DatasetError(f"source {source} does not exist: check the path")
    found = {p: size for p, size in found.items() if not f"{source}/{p}".startswith(f"{out}/")}
    packs = {p: size for p, size in found.items() if p.lower().endswith(archives.SUFFIXES)}
    if not packs:
        _only_in_tables(columns, source)
        return _class_folders(source, found), None
    return _archives(source, packs, columns, out, each)


def _archives(
    source: str, packs: dict[str, int], columns: SourceColumns, out: str, each: Map
) -> tuple[pa.Table, Sequence[str] | None]:
    """Index of a folder's archives, their bytes by path, and the class names they tell."""
    names = archives.class_names(source, list(packs), columns.label_column)
    jobs = [
        archives.ArchiveJob(
            source, path, size, columns.label_column, columns.separator, columns.group_column,
            columns.split_column, names, storage.join(out, WORK, "spool"),
        )
        for path, size in packs.items()
    ]  # fmt: skip
    images = pa.concat_tables(each(archives.index, jobs))
    if not len(images):
        raise DatasetError(f"no images in the {len(packs)} archives of {source}")
    return images if columns.split_column else _split_by_file(images), names


def _only_in_tables(columns: SourceColumns, source: str) -> None:
    if columns.separator:
        raise DatasetError(
            f"{source} is a folder of class folders, where each image has one class: for --task "
            "multilabel give a table, Parquet or WebDataset tars as --source"
        )
    for flag in ("group_column", "split_column"):
        if getattr(columns, flag):
            raise DatasetError(
                f"--{flag.replace('_', '-')} needs a table, but {source} is a folder of class "
                "folders: give a CSV of paths and labels as --source"
            )


def _class_folders(source: str, found: dict[str, int]) -> pa.Table:
    """One folder per class, or one per split with one per class in each."""
    paths = [p for p in found if "/" in p and p.lower().endswith(IMAGE_SUFFIXES)]
    if not paths:
        raise DatasetError(
            f"no images in {source} ({len(found)} files): expected one folder per class, each "
            f"with {', '.join(DECODABLE_SUFFIXES)} files; or a CSV table, Parquet or "
            "WebDataset tars"
        )
    parts = [path.split("/") for path in paths]
    by_split = all(p[0].lower() in SPLIT_NAMES for p in parts)
    _check_places(source, found, min(parts, key=len) if by_split else None)
    return table(
        {
            "path": paths,
            "file": [storage.join(source, path) for path in paths],
            "bytes": [found[path] for path in paths],
            "label": [p[1 if by_split else 0] for p in parts],
            "split": [p[0] for p in parts] if by_split else None,
        }
    )


def _check_places(source: str, found: dict[str, int], highest: list[str] | None) -> None:
    """No image lies where no class is. `highest`: of those in folders of splits, if they are."""
    loose = next((p for p in found if "/" not in p and p.lower().endswith(IMAGE_SUFFIXES)), None)
    if highest and len(highest) < 3:
        loose = "/".join(highest)
    if loose:
        raise DatasetError(
            f"{source} has images outside of class folders, among them {loose}: move them into "
            "their classes' folders, or away"
        )


def _table(
    source: str, columns: SourceColumns, out: str, each: Map
) -> tuple[pa.Table, Sequence[str] | None]:
    """A table of paths and labels; or one Parquet file of images."""
    if source.lower().endswith(".parquet"):
        filesystem, path = storage.arrow_filesystem(source)
        schema = storage.read_with_retries(
            source, lambda: pq.read_schema(path, filesystem=filesystem)
        )
        if hf_parquet.holds_images(schema):
            folder, _, name = source.rpartition("/")
            return _archives(folder, {name: _sizes([source], source)[0]}, columns, out, each)
        rows = storage.read_with_retries(
            source, lambda: pq.read_table(path, filesystem=filesystem), TABLE_BYTES
        )
    else:
        rows = _csv(source)
    wanted = {
        "path": columns.path_column,
        "label": columns.label_column,
        "group": columns.group_column,
        "split": columns.split_column,
    }
    for name in filter(None, wanted.values()):
        if name not in rows.column_names:
            raise DatasetError(
                f"{source} has no column {name!r}, only {', '.join(rows.column_names)}: name the "
                "right one with --path-column, --label-column, --group-column or --split-column"
            )
    taken = {key: _texts(rows, name) for key, name in wanted.items() if name and key != "label"}
    taken["label"] = _labels(rows, columns, source)
    for key, texts in taken.items():
        if not all(texts) and key != "group":
            raise DatasetError(f"{source} has rows without a value in {wanted[key]!r}: fill them")
    paths = taken["path"]
    folder = source.rpartition("/")[0]
    files = [p if "://" in p or p.startswith("/") else storage.join(folder, p) for p in paths]
    return table({**taken, "file": files, "bytes": _sizes(files, source)}), None


def _texts(rows: pa.Table, name: str) -> list[Any]:
    """A column's values as text; empty ones are None."""
    return [None if v is None or v == "" else str(v) for v in column_values(rows, name)]


def _labels(rows: pa.Table, columns: SourceColumns, source: str) -> list[str | None]:
    try:
        return [
            classes.normalize_label(v, columns.separator)
            for v in column_values(rows, columns.label_column)
        ]
    except ValueError as error:
        raise DatasetError(f"{source} has {error}") from error


def _csv(source: str) -> pa.Table:
    parse = pyarrow.csv.ParseOptions(delimiter="\t" if source.lower().endswith(".tsv") else ",")
    data = storage.read_bytes(source)
    try:
        names = pyarrow.csv.open_csv(io.BytesIO(data), parse_options=parse).schema.names
        # As text, all of it: a label 01 is not 1.
        texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=texts)
    except pa.ArrowInvalid as error:
        what = "save it as UTF-8" if "UTF8" in str(error) else "check its first lines"
        raise DatasetError(f"{source} is no CSV table ({error}): {what}") from error


def _sizes(files: Sequence[str], source: str) -> list[int]:
    """Bytes of each file, by listing the folders that hold them."""
    sizes: dict[str, int] = {}
    for root in _roots(files):
        found = storage.sizes(root)
        sizes |= {storage.join(root, path): size for path, size in found.items()}
    missing = [file for file in files if file not in sizes]
    if missing:
        raise DatasetError(
            f"{len(missing):,} of the {len(files):,} images that {source} names do not exist, "
            f"among them {', '.join(missing[:3])}: correct the table"
        )
    return [sizes[file] for file in files]


def _roots(files: Sequence[str]) -> list[str]:
    """The deepest common folder of the local files, and of each bucket's."""
    buckets: dict[str, list[str]] = {}
    for file in files:
        folder = file.rpartition("/")[0]
        buckets.setdefault("/".join(folder.split("/")[:3]) if "://" in folder else "", []).append(
            folder
        )
    return [posixpath.commonprefix([f"{f}/" for f in set(b)]).rpartition("/")[0]
            for b in buckets.values()]  # fmt: skip


def _split_by_file(images: pa.Table) -> pa.Table:
    """The split that an archive's name tells, as train-00000.parquet does."""
    named = [split_of(path.partition("#")[0]) for path in column_values(images, "path")]
    return _replaced(images, "split", pa.array(named, pa.string())) if all(named) else images


def split_of(path: str) -> str | None:
    """The split that a file's name, or else its folder's, tells."""
    found = re.findall(rf"(?:^|[/_.-])({'|'.join(SPLIT_NAMES)})(?=[/_.-])", path.lower())
    return SPLIT_NAMES[found[-1]] if found else None


def _splits(given: Sequence[str | None], source: str) -> Any:
    """Splits by our names."""
    names = [name and name.strip().lower() for name in given]
    unknown = sorted({name for name in names if name and name not in SPLIT_NAMES})
    if unknown:
        raise DatasetError(
            f"{source} names the split {unknown[0]!r}: expected train, eval (val, validation) or "
            "test"
        )
    return pa.array([SPLIT_NAMES[name] if name else None for name in names], pa.string())


def _check_unique(paths: Sequence[str], source: str) -> None:
    """Paths are sorted."""
    for path, after in itertools.pairwise(paths):
        if path == after:
            raise DatasetError(f"{source} names {path} twice: name each image once")


def read(file: str, offset: int, size: int) -> bytes:
    """An image's bytes. Raises DatasetError where the source changed meanwhile."""
    try:
        return (
            storage.read_range(file, offset, size)
            if offset >= 0
            else storage.read_bytes(file, size)
        )
    except StorageError as error:
        raise DatasetError(f"{file} vanished or is unreadable while packing: {error}") from error
