"""Evaluation inputs: the images of a split, preprocessed as the release expects.

A read unit has the same images whichever worker reads it, so the network gets the same batches on
any number of workers.
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

THUMBNAIL_PX = 128
"""Longer side of a thumbnail."""
MAX_NAMES = 5
"""Class names in an error message: enough to recognise another data set."""


@dataclass(frozen=True, slots=True)
class ReadUnit:
    """Rows of one row group that go through the network together."""

    group: int
    """The row group's number in the split."""
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class EvalInputs:
    """The images to evaluate and their preprocessing; sent to the cluster once."""

    manifest: Manifest
    data: str
    """URI of the manifest's folder."""
    split: str
    """`eval`, `test` or `train`."""
    spec: InputSpec
    outputs: tuple[int, ...]
    """The network's output for each class of the data set."""
    thumbnails: bool = False
    """Whether to make thumbnails."""
    limited: bool = False
    """Whether the manifest has fewer images than the shards."""

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.manifest.task == MULTILABEL

    @property
    def images(self) -> int:
        """Images of the split."""
        return self.manifest.images[self.split]

    def read_units(self, max_images: int) -> Iterator[list[ReadUnit]]:
        """The units of each row group, of up to `max_images` each; all images once."""
        for group, rows in enumerate(self.manifest.index(self.split).sizes.tolist()):
            starts = range(0, rows, max_images)
            yield [ReadUnit(group, first, min(first + max_images, rows)) for first in starts]


def match_classes(
    release_classes: Sequence[str], classes: Sequence[str], reference: str
) -> tuple[int, ...]:
    """The network's output for each of a data set's `classes`, matched by name.

    The data set may lack some of the release's classes or order them differently. Raises
    DatasetError if it has classes that the release `reference` lacks.
    """
    output = {name: index for index, name in enumerate(release_classes)}
    unknown = [name for name in classes if name not in output]
    if unknown:
        raise DatasetError(
            f"the data set has {len(unknown)} classes that {reference} does not have "
            f"({_first_names(unknown)}); the release has {_first_names(release_classes)}: use the "
            "data set it was trained on, or train on this one"
        )
    return tuple(output[name] for name in classes)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:MAX_NAMES])) + (", …" if len(names) > MAX_NAMES else "")


def preprocess(
    inputs: EvalInputs, units: Sequence[ReadUnit], group: RowGroup | None = None
) -> Iterator[tuple[npt.NDArray[np.uint8], dict[str, list[Any]]]]:
    """Views [n, R, R, 3] and metadata of each unit; all units are of one row group, `group` if it
    has been read.

    Metadata are lists of `label` (the network's output, or a list of them), `image`, `path`,
    `error` and `thumbnail`, as in `metric_sums.ScoredImages`. The view of an unreadable image is
    all zeros.
    Raises DatasetError if the shard differs from the manifest, StorageError if it cannot be read.
    """
    group = group or RowGroup(
        inputs.manifest, inputs.data, inputs.split, units[0].group, limited=inputs.limited
    )
    size = inputs.spec.resolution
    for unit in units:
        views = np.zeros((unit.end - unit.first, size, size, 3), np.uint8)
        images = list[dict[str, Any]]()
        for slot, row in enumerate(range(unit.first, unit.end)):
            record = group.record(row)
            error, thumbnail = _make_view(inputs, record, views[slot])
            images.append(
                {
                    "label": _output_labels(inputs, record.label),
                    "image": record.id,
                    "path": record.path,
                    "error": error,
                    "thumbnail": thumbnail,
                }
            )
        yield views, {name: [image[name] for image in images] for name in images[0]}


def _output_labels(inputs: EvalInputs, label: Label) -> Label:
    """An image's label or labels as outputs of the network."""
    labels = [label] if isinstance(label, int) else label
    if not all(0 <= index < len(inputs.outputs) for index in labels):
        raise DatasetError(
            f"{inputs.data} has an image of class {label} but only {len(inputs.outputs)} "
            "classes: pack it again"
        )
    outputs = [inputs.outputs[index] for index in labels]
    return outputs[0] if isinstance(label, int) else outputs


def _make_view(
    inputs: EvalInputs, record: ImageRecord, view: npt.NDArray[np.uint8]
) -> tuple[str, str]:
    """Write the image's view into `view`; return the error, if any, and the thumbnail."""
    pixels, error = write_eval_view(record.data, inputs.spec, view)
    if pixels is None or not inputs.thumbnails:
        return error, ""
    return "", base64.b64encode(encode_jpeg(pixels, THUMBNAIL_PX)).decode()
