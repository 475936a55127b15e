"""Pictures of a packed data set, small enough for a page."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from effnet_ray.data.classes import format_label
from effnet_ray.data.decode import Pixels, decode, encode_jpeg
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.views import eval_view
from effnet_ray.errors import ImageError
from effnet_ray.variants import InputSpec

SIDE = 128
"""px: the longer side of a picture on the page."""
READERS = 8
"""Row groups that are read at a time. Chosen, not measured."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image on the page."""

    path: str
    label: str
    split: str
    width: int
    height: int
    picture: str
    """A JPEG as base64; empty if the image cannot be read any more."""
    view: str
    """What the network sees of it, as a JPEG in base64; empty if it was not asked for."""


def read_pictures(
    manifest: Manifest,
    data: str,
    index: pa.Table,
    rows: Iterable[int],
    views: Mapping[int, InputSpec],
) -> dict[int, Picture]:
    """The images in these rows of the index; with the eval view of those in `views`.

    Each row group is read once. Raises DatasetError for a damaged shard.
    """
    chosen = sorted(set(rows))
    records = dict(zip(chosen, index.take(chosen).to_pylist(), strict=True))
    rows_of = defaultdict[tuple[str, int], list[int]](list)
    for number, record in records.items():
        rows_of[record["split"], record["row_group"]].append(number)

    def read_group(place: tuple[str, int]) -> list[tuple[int, Picture]]:
        group = RowGroup(manifest, data, *place, limited=False)
        return [
            (number, _picture(group, records[number], manifest.classes, views.get(number)))
            for number in rows_of[place]
        ]

    with ThreadPoolExecutor(READERS) as pool:
        return dict(pair for pairs in pool.map(read_group, rows_of) for pair in pairs)


def _picture(
    group: RowGroup, record: dict[str, Any], classes: Sequence[str], spec: InputSpec | None
) -> Picture:
    image = group.record(record["row"])
    picture = view = ""
    try:
        if not isinstance(image.data, ImageError):
            pixels = decode(image.data)
            picture = to_jpeg(pixels)
            view = to_jpeg(eval_view(pixels, spec)) if spec else ""
    except ImageError:
        pass  # damaged since it was packed: the page has its name without a picture
    return Picture(
        path=image.path,
        label=format_label(image.label, classes),
        split=record["split"],
        width=record["width"],
        height=record["height"],
        picture=picture,
        view=view,
    )


def to_jpeg(pixels: Pixels) -> str:
    """The pixels, at most `SIDE` px a side, as a JPEG in base64. Small ones are enlarged."""
    factor = max(1, SIDE // max(pixels.shape[:2]))
    enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return base64.b64encode(encode_jpeg(enlarged, SIDE)).decode()
