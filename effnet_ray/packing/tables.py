"""The index of a table (CSV, TSV or Parquet) of image paths and labels."""

import io
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.errors import DatasetError
from effnet_ray.packing.listing import kept_json, make_index
from effnet_ray.packing.options import SourceColumns
from effnet_ray.packing.source_labels import one_hot_columns, read_labels
from effnet_ray.storage import Entry, parquet
from effnet_ray.storage.parquet import column_values

SUFFIXES = (".csv", ".tsv", ".parquet")
DEFAULT = SourceColumns()
STAT_THREADS = 16
TABLE_BYTES = 256 * 1024**2
"""Size for which reading a Parquet table may take its time."""


def index_table(source: str, columns: SourceColumns) -> pa.Table:
    """Return the index of the table at `source`.

    Raises DatasetError if a column, a value or an image is missing.
    """
    rows = _read_rows(source)
    names = {
        "path": columns.path_column,
        "label": columns.label_column,
        "group": columns.group_column,
        "split": columns.split_column,
    }
    others = [*(name for key, name in names.items() if key != "label"), *columns.kept]
    one_hot = one_hot_columns(rows, others) if names["label"] == DEFAULT.label_column else []
    for name in filter(None, [*names.values(), *columns.kept]):
        if name not in rows.column_names and not (name == names["label"] and one_hot):
            raise DatasetError(
                f"{source} has no column {name!r}, only {', '.join(rows.column_names)}: set the "
                "right one with --path-column, --label-column, --group-column, --split-column or "
                "--keep-columns"
            )
    values = {key: _texts(rows, name) for key, name in names.items() if name and key != "label"}
    values["label"] = read_labels(rows, columns, others, source)
    for key, column in values.items():
        if not all(column) and key != "group":
            raise DatasetError(
                f"{source} has rows without a value in {names[key]!r}: fill in the values"
            )
    if columns.kept:
        kept = rows.select(columns.kept).to_pylist()
        values["kept"] = [kept_json(row, columns.kept) for row in kept]
    files = _absolute(values["path"], source)
    entries = file_entries(files, source)
    return make_index({**values, "file": files, "bytes": [entries[file].size for file in files]})


def image_files(source: str, columns: SourceColumns) -> list[str]:
    """Return the URIs of the images that a table lists; none if it has no column of paths."""
    if source.lower().endswith(".parquet") and (
        columns.path_column not in parquet.read_schema(source).names
    ):
        return []
    rows = _read_rows(source)
    if columns.path_column not in rows.column_names:
        return []
    return _absolute(filter(None, _texts(rows, columns.path_column)), source)


def _absolute(paths: Iterable[str], source: str) -> list[str]:
    """The paths, which are relative to the table, as URIs."""
    folder = source.rpartition("/")[0]
    return [p if "://" in p or p.startswith("/") else storage.join(folder, p) for p in paths]


def _read_rows(source: str) -> pa.Table:
    is_parquet = source.lower().endswith(".parquet")
    return _read_parquet(source) if is_parquet else read_csv(source)


def _texts(rows: pa.Table, name: str) -> list[Any]:
    """Return a column's values as text; empty ones are None."""
    return [None if v is None or v == "" else str(v) for v in column_values(rows, name)]


def _read_parquet(source: str) -> pa.Table:
    def read() -> pa.Table:
        filesystem, path = storage.arrow_filesystem(source)
        return pq.read_table(path, filesystem=filesystem)

    with parquet.errors(source):
        rows = storage.read_with_retries(source, read, TABLE_BYTES)
    return rows.select(parquet.plain_columns(rows.schema))


def read_csv(source: str) -> pa.Table:
    """Read a CSV or TSV with all columns as text. Raises DatasetError if it is not one."""
    data = storage.read_bytes(source)
    parse = pyarrow.csv.ParseOptions(delimiter=_delimiter(source, data), newlines_in_values=True)
    try:
        names = pyarrow.csv.open_csv(io.BytesIO(data), parse_options=parse).schema.names
        # All columns as text: the label 01 is not the label 1.
        texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        rows = pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=texts)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        encoding = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
        action = "save it as UTF-8" if encoding else "check its first lines"
        raise DatasetError(f"{source} is not a valid CSV table ({error}): {action}") from error
    return _without_blanks(rows)


def _without_blanks(rows: pa.Table) -> pa.Table:
    """The rows without blanks around names and values, if names have any: `path, label`."""
    names = [name.strip() for name in rows.column_names]
    if names == rows.column_names or len(set(names)) < len(names):
        return rows
    columns = [pyarrow.compute.utf8_trim_whitespace(column) for column in rows.columns]
    return pa.table(columns, names)


def _delimiter(source: str, data: bytes) -> str:
    """A tab in a TSV; in a CSV a comma, or what its first line has instead: `;` or a tab."""
    if source.lower().endswith(".tsv"):
        return "\t"
    header = data.partition(b"\n")[0]
    others = [mark for mark in (";", "\t") if mark.encode() in header]
    return others[0] if len(others) == 1 and b"," not in header else ","


def file_entries(files: Sequence[str], source: str) -> dict[str, Entry]:
    """Return the entry of each file, in buckets from listings of the folders that contain them.

    A disk is not listed: the common folder of two files may be its root. Raises DatasetError if
    files do not exist.
    """
    remote = [file for file in files if storage.is_remote(file)]
    local = sorted({*files}.difference(remote))
    with ThreadPoolExecutor(STAT_THREADS) as pool:  # a network file system answers slowly
        found = zip(local, pool.map(storage.local_entry, local), strict=True)
        entries = {file: entry for file, entry in found if entry}
    for root in _common_folders(remote):
        entries |= {
            storage.join(root, path): entry
            for path, entry in storage.entries(root, hidden=True, follow_links=True).items()
        }
    missing = [file for file in files if file not in entries]
    if missing:
        raise DatasetError(
            f"{len(missing):,} of the {len(files):,} images in {source} do not exist, for "
            f"example {', '.join(missing[:3])}: correct the table"
        )
    return {file: entries[file] for file in files}


def _common_folders(files: Sequence[str]) -> list[str]:
    """Return the deepest common folder of the files of each bucket."""
    folders_of: dict[str, set[str]] = {}
    for file in files:
        folder = file.rpartition("/")[0]
        folders_of.setdefault("/".join(folder.split("/")[:3]), set()).add(f"{folder}/")
    return [
        posixpath.commonprefix(list(folders)).rpartition("/")[0] for folders in folders_of.values()
    ]
