"""The job of indexing one archive, and the samples that are read from it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.data import classes
from effnet_ray.errors import DatasetError
from effnet_ray.packing.listing import INDEX_SCHEMA
from effnet_ray.packing.options import SourceColumns

Sample = dict[str, Any]
"""`path`, `offset`, `data` (bytes, or their number), `label`, `group`, `split` and `set_aside`."""


def set_aside_sample(path: str, reason: str) -> Sample:
    """A member of the archive that is not an image."""
    nothing = dict.fromkeys(("label", "group", "split", "kept"))
    return {"path": path, "offset": -1, "data": b"", **nothing, "set_aside": reason}


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """One archive to index."""

    source: str
    path: str
    """Relative to `source`."""
    bytes: int
    columns: SourceColumns
    classes: Sequence[str] | None
    """Class names of numbered labels, if the archive contains them."""
    spool: str
    """Folder for copies of images that cannot be read by range, and for the index."""

    @property
    def uri(self) -> str:
        """URI of the archive."""
        return storage.join(self.source, self.path)

    @property
    def key(self) -> str:
        """Base name of the job's files in the spool, unique to its input."""
        content = {
            "source": self.source,
            "path": self.path,
            "bytes": self.bytes,
            "label": self.columns.label_column,
            "separator": self.columns.separator,
            "group": self.columns.group_column,
            "split": self.columns.split_column,
            "kept": self.columns.kept,
            "classes": self.classes,
            "index": INDEX_SCHEMA.names,
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]

    def parse_label(self, value: Any) -> str | None:
        """Return a label for the index. Raises DatasetError for several where one is expected."""
        try:
            return classes.normalize_label(value, self.columns.separator, self.classes)
        except ValueError as error:
            raise DatasetError(f"{self.uri} has {error}") from error


def optional_text(value: Any) -> str | None:
    """Return the value as text; None if it is empty."""
    return None if value is None or value == "" else str(value)
