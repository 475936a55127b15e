"""The page of a packed data set: what is in it, and what may need attention."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.ticker import MaxNLocator

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.packing import image_index, on_demand, report as reports
from effnet_ray.packing.listing import flat_labels
from effnet_ray.packing.report import Report
from effnet_ray.packing.results import DUPLICATES, QUARANTINE
from effnet_ray.reporting.data_pictures import Picture, read_pictures
from effnet_ray.reporting.page import render
from effnet_ray.reporting.svg import BLUE, new_figure, plot_style, to_svg
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values
from effnet_ray.variants import SQUASH, InputSpec

NAME = "report.html"

MAX_CLASSES = 40
"""Classes in the table, half of them the largest and half the smallest."""
MAX_SHEETS = 24
"""Classes with pictures, the largest and the smallest."""
PER_CLASS = 6
"""Pictures of a class."""
MAX_PAIRS = 8
"""Pairs of duplicates of each kind."""
VIEWS = 8
"""Images with their view: the half of which most is cut away, and others."""
BINS = 24
"""Bars of a histogram."""
MAX_LISTED = 200
"""Quarantined images and files set aside that are listed; report.json and quarantine.parquet have
all."""

Ints = npt.NDArray[np.int64]


class Pair(NamedTuple):
    """Two images that are identical, or nearly so."""

    first: Picture
    second: Picture
    distance: int
    """Differing bits of their hashes; 0 if their bytes are the same."""


class Duplicates(NamedTuple):
    """Rows of the index: pairs of images, and how far they are apart."""

    conflicts: list[tuple[int, int, int]]
    """Identical, of different labels."""
    similar: list[tuple[int, int, int]]
    """Nearly identical, of different labels."""
    leaks: list[tuple[int, int, int]]
    """Nearly identical, of one label, in different splits."""
    same: list[tuple[int, int, int]]
    """Of one label, identical, or nearly so in one split."""


def write_page(data: str, uri: str, spec: InputSpec) -> None:
    """Write the page of the data set `data` to `uri`; `spec` is what a network would see.

    Raises DatasetError for a data set that was packed in place or by an earlier version.
    """
    with manifests.consistent(data):
        page = html(data, spec)
    storage.write_bytes(uri, page)


def ensure_page(data: str, spec: InputSpec) -> str:
    """URI of the data set's own page, written if it is missing; empty if it cannot have one."""
    uri = storage.join(data, NAME)
    if not storage.exists(uri):
        if not storage.exists(storage.join(data, image_index.NAME)):
            return ""
        write_page(data, uri, spec)
    return uri


def html(data: str, spec: InputSpec) -> bytes:
    """The page of the data set in folder `data`; see `write_page`."""
    index = image_index.read_image_index(data)  # first: it says what to do if there is none
    manifest, report = manifests.load(data), reports.load(data)
    sheets = _choose_sheets(manifest, index)
    viewed = _choose_views(index, spec)
    duplicates = _find_duplicates(index, data)
    pairs = [pair for kind in duplicates for pair in kind]
    rows = {row for rows in sheets.values() for row in rows}
    rows |= {row for first, second, _ in pairs for row in (first, second)} | set(viewed)
    pictures = read_pictures(manifest, data, index, rows, dict.fromkeys(viewed, spec))
    return render(
        "reporting/data.html.j2",
        name=_name(manifest, data),
        data=data,
        manifest=manifest,
        report=report,
        images=sum(manifest.images.values()),
        classes=list(_class_rows(manifest, report)),
        sheets={manifest.classes[k]: [pictures[r] for r in rows] for k, rows in sheets.items()},
        plots=_plots(index),
        spec=spec,
        cut_away=float(_cut_away(index, spec).mean()),
        views=[pictures[row] for row in viewed],
        duplicates={
            name: [Pair(pictures[first], pictures[second], bits) for first, second, bits in kind]
            for name, kind in duplicates._asdict().items()
        },
        quarantined=_quarantined(data),
        reasons=Counter(entry.reason for entry in report.set_aside).most_common(),
        set_aside=report.set_aside[:MAX_LISTED],
    )


def _name(manifest: Manifest, data: str) -> str:
    """Name of the folder or file that was packed."""
    source = on_demand.source_of(data) or str(manifest.made_from.get("source", data))
    return source.rstrip("/").rpartition("/")[2]


def _largest_and_smallest(order: Sequence[int], count: int) -> list[int]:
    """The first and last half of `count` numbers; all if there are no more."""
    half = count // 2
    return list(order) if len(order) <= count else [*order[:half], *order[-half:]]


def _class_rows(manifest: Manifest, report: Report) -> Iterator[tuple[str, list[int], float]]:
    """Name, images per split, and share of the largest class's images."""
    totals = np.sum([*report.images.values()], axis=0)
    order = np.argsort(-totals, kind="stable").tolist()
    for k in _largest_and_smallest(order, MAX_CLASSES):
        counts = [images[k] for images in report.images.values()]
        yield manifest.classes[k], counts, float(totals[k] / max(1, totals.max()))


def _choose_sheets(manifest: Manifest, index: pa.Table) -> dict[int, list[int]]:
    """Rows of the first images of each class: packing has shuffled them."""
    image, label = flat_labels(index)
    order = np.argsort(-np.bincount(label, minlength=len(manifest.classes)), kind="stable")
    chosen = _largest_and_smallest(order.tolist(), MAX_SHEETS)
    return {k: image[label == k][:PER_CLASS].tolist() for k in chosen if (label == k).any()}


def _cut_away(index: pa.Table, spec: InputSpec) -> npt.NDArray[np.float64]:
    """Share of each image's area that is outside of its view."""
    width, height = index["width"].to_numpy(), index["height"].to_numpy()
    if spec.crop_mode == SQUASH:
        return np.full(len(index), 1 - spec.crop**2)
    kept = spec.crop**2 * np.minimum(width, height) / np.maximum(1, np.maximum(width, height))
    share: npt.NDArray[np.float64] = np.clip(1 - kept, 0, 1)
    return share


def _choose_views(index: pa.Table, spec: InputSpec) -> list[int]:
    """Rows of the images of which most is cut away, and of the first others."""
    worst = np.argsort(-_cut_away(index, spec), kind="stable")[: VIEWS // 2].tolist()
    others = [row for row in range(min(len(index), VIEWS)) if row not in worst]
    return [*worst, *others[: VIEWS - len(worst)]]


def _find_duplicates(index: pa.Table, data: str) -> Duplicates:
    """The first pairs of each kind whose images are both packed."""
    table = parquet.read_table(storage.join(data, DUPLICATES))
    names = {name for column in ("path", "other_path") for name in column_values(table, column)}
    rows = {path: n for n, path in enumerate(column_values(index, "path")) if path in names}
    kinds = defaultdict[str, list[tuple[int, int, int]]](list)
    for pair in table.to_pylist():
        if pair["label"] != pair["other_label"]:
            kind = "similar" if pair["distance"] else "conflicts"
        else:
            kind = "leaks" if pair["distance"] and pair["split"] != pair["other_split"] else "same"
        if len(kinds[kind]) < MAX_PAIRS and {pair["path"], pair["other_path"]} <= rows.keys():
            kinds[kind].append((rows[pair["path"]], rows[pair["other_path"]], pair["distance"]))
    return Duplicates(*(kinds[name] for name in Duplicates._fields))


def _quarantined(data: str) -> list[tuple[str, str]]:
    """Path and reason of the first images that cannot be read."""
    table = parquet.read_table(storage.join(data, QUARANTINE)).slice(0, MAX_LISTED)
    return list(zip(column_values(table, "path"), column_values(table, "reason"), strict=True))


def _plots(index: pa.Table) -> dict[str, str]:
    """Histograms as SVG, by title."""
    width, height = index["width"].to_numpy(), index["height"].to_numpy()
    longer = np.maximum(width, height)
    shape = np.log2(width / np.maximum(1, height))
    return {
        "Longer side, px": _histogram(np.log2(np.maximum(1, longer)), _px, "longer side, px"),
        "Width over height": _histogram(shape, _ratio, "width over height"),
        "Brightness": _histogram(
            index["brightness"].to_numpy().astype(float), "{:.0f}".format, "mean value, 0 to 255"
        ),
    }


def _px(value: float) -> str:
    return f"{2**value:,.0f}"


def _ratio(value: float) -> str:
    return f"{2**value:.2g}"


def _histogram(values: npt.NDArray[np.float64], label: Any, name: str) -> str:
    """Images by value; `label` turns a value of the axis into text."""
    with plot_style():
        figure = new_figure(height=2.2)
        axes = figure.add_subplot()
        axes.hist(values, bins=BINS, color=BLUE)
        axes.xaxis.set_major_formatter(lambda value, _: label(value))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set(xlabel=name, ylabel="images")
        return to_svg(figure, f"histogram of images by {name}")
