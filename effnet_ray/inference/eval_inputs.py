"""What a release is shown of a split: pieces of row groups, as its own preprocessing makes them.

A piece is the same images whoever makes it, so a network is given the same batches on any number
of workers. No torch, no Ray.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.data.classes import Label
from effnet_ray.data.decode import encode_jpeg
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.row_group import ImageRecord, RowGroup
from effnet_ray.data.views import write_eval_view
from effnet_ray.errors import DatasetError
from effnet_ray.recipe import MULTILABEL
from effnet_ray.variants import InputSpec

THUMBNAIL = 128
"""px of the longer side."""


@dataclass(frozen=True, slots=True)
class ReadUnit:
    """Some rows of one row group, which go through the network together."""

    group: int
    """The row group's number in the split."""
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class EvalInputs:
    """Images to be shown, and how; sent to the cluster once."""

    manifest: Manifest
    data: str
    """URI of the manifest's folder."""
    name: str
    """`eval`, `test` or `train`."""
    spec: InputSpec
    labels: tuple[int, ...]
    """The network's output for each class of the data set."""
    thumbnails: bool = False
    """Whether to make those."""
    limited: bool = False
    """Whether the manifest has fewer images than there are."""

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""
        return self.manifest.task == MULTILABEL

    @property
    def images(self) -> int:
        """Images of the split."""
        return self.manifest.images[self.name]

    def pieces(self, most: int) -> Iterator[list[ReadUnit]]:
        """All images once, row group by row group, in pieces of `most` images or fewer."""
        for group, (*_, rows) in enumerate(self.manifest.row_groups(self.name)):
            starts = range(0, rows, most)
            yield [ReadUnit(group, first, min(first + most, rows)) for first in starts]


def labels(known: Sequence[str], classes: Sequence[str], whose: str) -> tuple[int, ...]:
    """For each of a data set's `classes`, which of the network's `known` it is, by its name.

    The order may be another, and some may be missing. Raises DatasetError for others, naming them.
    """
    place = {name: index for index, name in enumerate(known)}
    unknown = [name for name in classes if name not in place]
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        have = ", ".join(map(repr, known[:5])) + (", …" if len(known) > 5 else "")
        raise DatasetError(
            f"the data set has {len(unknown)} classes that {whose} does not know ({named}), which "
            f"knows {have}: choose the data it was trained for, or train on these"
        )
    return tuple(place[name] for name in classes)


def preprocess(
    split: EvalInputs, pieces: Sequence[ReadUnit]
) -> Iterator[tuple[npt.NDArray[np.uint8], Any]]:
    """The pieces of one row group, which is read once.

    Of each its views [n, R, R, 3] uint8, and about each image `label` (the network's, or a list
    of these), `image`, `path`, `bad` and `thumbnail`, as `sums.Judged` has them; a view that
    cannot be made is 0.
    Raises DatasetError where the shard is not what was packed, StorageError where storage fails.
    """
    first = pieces[0].group
    group = RowGroup(split.manifest, split.data, split.name, first, limited=split.limited)
    size = split.spec.resolution
    for piece in pieces:
        views = np.zeros((piece.end - piece.first, size, size, 3), np.uint8)
        about = list[dict[str, Any]]()
        for slot, row in enumerate(range(piece.first, piece.end)):
            record = group.record(row)
            about.append({
                "label": _known(split, record.label), "image": record.id,
                "path": record.path, **_view(split, record, views[slot]),
            })  # fmt: skip
        yield views, {name: [each[name] for each in about] for name in about[0]}


def _known(split: EvalInputs, label: Label) -> Label:
    """An image's label, or labels, as the network's outputs."""
    own = [label] if isinstance(label, int) else label
    if not all(0 <= each < len(split.labels) for each in own):
        raise DatasetError(
            f"{split.data} has an image of class {label}, of {len(split.labels)} classes: pack "
            "it again"
        )
    known = [split.labels[each] for each in own]
    return known[0] if isinstance(label, int) else known


def _view(split: EvalInputs, record: ImageRecord, view: npt.NDArray[np.uint8]) -> dict[str, str]:
    """Make the image's view in place; what came of it, and its thumbnail."""
    pixels, reason = write_eval_view(record.data, split.spec, view)
    thumbnail = ""
    if split.thumbnails and pixels is not None:
        thumbnail = base64.b64encode(encode_jpeg(pixels, THUMBNAIL)).decode()
    return {"bad": reason, "thumbnail": thumbnail}
