"""The listing of a source: its class names, and an index with one row per entry.

An entry is a file, a row of a table or a member of an archive. Each is an image, or it is set
aside for a reason, so that none is lost silently.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from effnet_ray.data.classes import task_of
from effnet_ray.errors import DatasetError
from effnet_ray.recipe import MULTICLASS
from effnet_ray.storage.parquet import column_values

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Applies a function to items, here or all over a cluster; results are in the items' order."""

WORK_FOLDER = "packing"
"""Folder of a data set with the files that packing needs until the manifest is written."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("eval", "val", "valid", "validation", "dev"), "eval"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Common names of the splits."""

INDEX_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "file": pa.string(),
        "offset": pa.int64(),
        "bytes": pa.int64(),
        "label": pa.string(),
        "group": pa.string(),
        "split": pa.string(),
        "kept": pa.string(),
        "set_aside": pa.string(),
    }
)
"""`offset` is -1 if the image is the whole file. `kept` is a JSON object with the values of
`SourceColumns.kept`, null without any. `set_aside` is the reason why the entry is not listed as an
image, null for images."""

HIDDEN = "hidden: a name in its path starts with a dot"


@dataclass(frozen=True, slots=True)
class SetAside:
    """An entry of a source that is not listed as an image."""

    path: str
    reason: str


class Index(NamedTuple):
    """A source's entries, one row each."""

    entries: pa.Table
    """With the columns of `INDEX_SCHEMA`."""
    classes: Sequence[str] | None = None
    """The class names, if the source's files contain them."""
    without_images: tuple[str, ...] = ()
    """As in `Listing`."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The class names and the index of a source."""

    classes: tuple[str, ...]
    images: pa.Table
    """`path` (unique, sorted), `file`, `offset`, `bytes`, `label` (index of the class, or a list
    of them), `group` and `split` (null if the source has none), and `kept`. A row's number is its
    image's id."""
    set_aside: tuple[SetAside, ...] = ()
    """The other entries, sorted by path."""
    without_images: tuple[str, ...] = ()
    """Folders beside the class folders without any image."""
    notes: tuple[str, ...] = ()
    """Sentences about what may need attention."""

    @property
    def seen(self) -> int:
        """Number of entries."""
        return len(self.images) + len(self.set_aside)

    @property
    def digest(self) -> str:
        """SHA-256 of the classes and the images; independent of where the files are."""
        sha = hashlib.sha256(json.dumps(self.classes).encode())
        for name in ("path", "bytes", "label", "group", "split"):
            sha.update(json.dumps(column_values(self.images, name)).encode())
        return sha.hexdigest()


def is_hidden(path: str) -> bool:
    """Whether a name in the path starts with a dot."""
    return path.startswith(".") or "/." in path


def suffix_of(path: str) -> str:
    """The suffix of a file's name in lower case, or "no suffix"."""
    return PurePosixPath(path).suffix.lower() or "no suffix"


def set_aside(reasons: Mapping[str, str]) -> pa.Table:
    """Return an index of entries that are set aside; `reasons` by path."""
    return make_index({"path": list(reasons), "set_aside": list(reasons.values())})


def split_off_set_aside(entries: pa.Table) -> tuple[pa.Table, tuple[SetAside, ...]]:
    """Return the rows of images, and the others."""
    is_image = entries["set_aside"].is_null()
    images = entries.filter(is_image).drop_columns("set_aside")
    others = entries.filter(pa.compute.invert(is_image))
    pairs = zip(column_values(others, "path"), column_values(others, "set_aside"), strict=True)
    return images, tuple(SetAside(path, reason) for path, reason in sorted(pairs))


def make_index(columns: Mapping[str, Any]) -> pa.Table:
    """Return an index from some of its columns; the others are null, offsets -1."""
    count = len(columns["path"])
    columns = {"offset": [-1] * count, **columns}
    arrays = []
    for field in INDEX_SCHEMA:
        values = columns.get(field.name)
        if isinstance(values, pa.ChunkedArray):
            arrays.append(values)
        else:
            arrays.append(pa.array([None] * count if values is None else values, field.type))
    return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


def kept_json(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The values of these columns as in `kept`: text, null if missing or empty."""
    if not names:
        return None
    values = {name: row.get(name) for name in names}
    return json.dumps({n: None if v is None or v == "" else str(v) for n, v in values.items()})


def replace_column(images: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with another column of this name."""
    return images.set_column(images.schema.get_field_index(name), name, values)


def split_of(path: str) -> str | None:
    """Return the split in a file's name, or else in its folder's; None if there is none."""
    names = re.findall(rf"(?:^|[/_.-])({'|'.join(SPLIT_NAMES)})(?=[/_.-])", path.lower())
    return SPLIT_NAMES[names[-1]] if names else None


def split_by_file_name(entries: pa.Table) -> pa.Table:
    """Set the splits from the archives' names, as train-00000.parquet, if all images have one."""
    names = [split_of(path.partition("#")[0]) for path in column_values(entries, "path")]
    is_image = entries["set_aside"].is_null().to_pylist()
    if not all(name for name, image in zip(names, is_image, strict=True) if image):
        return entries
    return replace_column(entries, "split", pa.array(names, pa.string()))


def normalize_splits(values: Sequence[str | None], source: str) -> pa.Array:
    """Return train, eval or test for each split name. Raises DatasetError for other names."""
    names = [value and value.strip().lower() for value in values]
    unknown = sorted({name for name in names if name and name not in SPLIT_NAMES})
    if unknown:
        raise DatasetError(
            f"{source} has the split {unknown[0]!r}: expected train, eval (val, validation) or "
            "test"
        )
    return pa.array([SPLIT_NAMES[name] if name else None for name in names], pa.string())


def check_unique(paths: Sequence[str], source: str) -> None:
    """Raise DatasetError if one of the sorted paths occurs twice."""
    for path, following in itertools.pairwise(paths):
        if path == following:
            raise DatasetError(f"{source} lists {path} twice: list each image once")


def flat_labels(records: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return every label of every image: the image's row, and the class."""
    label = records["label"].combine_chunks()
    if task_of(label.type) == MULTICLASS:
        return np.arange(len(records)), label.to_numpy()
    return label.value_parent_indices().to_numpy(), label.flatten().to_numpy()
