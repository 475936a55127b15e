"""The size of a data set's images as they were packed."""

import contextlib
import statistics
from collections.abc import Iterator

from effnet_ray.data import manifest as manifests
from effnet_ray.data.decode import header_size
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.row_group import RowGroup
from effnet_ray.errors import ImageError


def typical_side(manifest: Manifest, data: str) -> float | None:
    """Median of the shorter sides of the images in the first row group of the train split, px.

    Packing shuffles, so they are a random sample (not with pack --in-place). None if none of them
    can be read. Raises DatasetError if the row group is not what was packed, StorageError if
    storage fails.
    """
    return statistics.median(sides) if (sides := list(_sides(manifest, data))) else None


def _sides(manifest: Manifest, data: str) -> Iterator[int]:
    rows = int(manifest.index("train").sizes[0])
    group = RowGroup(manifest, manifests.folder(data), "train", 0, limited=False)
    for row in range(rows):
        content = group.record(row).data
        if not isinstance(content, ImageError):
            with contextlib.suppress(ImageError):  # training quarantines it by name
                yield min(header_size(content))
