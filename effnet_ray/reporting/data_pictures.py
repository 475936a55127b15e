"""Pictures of a packed data set, small enough for a page."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from effnet_ray.data.classes import format_label
from effnet_ray.data.decode import Pixels, decode
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
    group: RowGroup, record: dict[str, object], classes: Sequence[str], spec: InputSpec | None
) -> Picture:
    image = group.record(int(str(record["row"])))
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
        split=str(record["split"]),
        width=int(str(record["width"])),
        height=int(str(record["height"])),
        picture=picture,
        view=view,
    )


def to_jpeg(pixels: Pixels) -> str:
    """The pixels, at most `SIDE` px a side, as a JPEG in base64. Small ones are enlarged."""
    image = Image.fromarray(pixels)
    longest = max(image.size)
    if longest < SIDE:
        factor = SIDE // longest
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    return base64.b64encode(sink.getvalue()).decode()
