"""From images to Parquet, by a release; what is interrupted goes on from the last whole part.

    OUT/part-00000.parquet …             path, label, labels, probabilities, (embedding)
    OUT/_quarantine/part-00000.parquet   path, reason: images that could not be read
    OUT/_begun.json, OUT/_done.json      of what; written first, and last

This process writes a part whenever all of it has been said. Readers of Parquet folders pass over
names that begin with an underscore.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.errors import DatasetError, EvaluationError
from effnet_ray.inference import image_sources
from effnet_ray.inference.image_sources import ImageSource, ImageUnit
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.predictor import Predictions, predict_parts
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime import session
from effnet_ray.runtime.inference_actors import as_evaluation_error
from effnet_ray.storage import parquet

PART_IMAGES = 4096
"""About so many rows in a file of predictions: what an interruption may cost."""
BEGUN, DONE, QUARANTINE = "_begun.json", "_done.json", "_quarantine"

Part = tuple[int, Sequence[ImageUnit]]
"""Its number, and what it is of."""


@dataclass(frozen=True, slots=True)
class PredictResult:
    """What came of it."""

    images: int
    rows: int
    quarantined: int
    out: str


def predict(
    release: LoadedRelease,
    source: str,
    out: str,
    placement: Placement,
    wanted: PredictOptions = PredictOptions(),  # noqa: B008  # frozen
    *,
    on_progress: Callable[[int, int], None] = lambda done, images: None,
    connect: Callable[[Placement], object] = lambda p: session.connect(
        p, local=False, verbose=False
    ),
) -> PredictResult:
    """Say of every image of `source` what it shows; go on where an earlier call stopped.

    `on_progress` hears how many images are done, of how many; `connect` joins or starts Ray once
    everything else is in order. Raises DatasetError for a source without images, or an `out` that
    holds something else, before anything is leased; EvaluationError where it fails later.
    """
    out = storage.absolute(out)
    images = image_sources.find_images(source, wanted.split)
    _begin(release, images, wanted, out)
    parts = list[Part](enumerate(images.parts(PART_IMAGES)))
    there = storage.sizes(out)
    lacking = [part for part in parts if _name(part[0]) not in there]
    if lacking:
        connect(placement)
        lease = session.request_resources(placement, [images.uri, release.uri])
        said = unwrap_errors(predict_parts(release, images, lacking, wanted, placement, lease))
        before = images.images - sum(unit.images for _, units in lacking for unit in units)
        heard = _telling(said, before, images.images, on_progress)
        with as_evaluation_error("predicting"):
            for number, rows in itertools.groupby(heard, lambda row: row.part):
                _write(list(rows), number, release.classes, out)
    return _conclude(parts, images, out)


def _telling(
    said: Iterator[Predictions], done: int, images: int, on_progress: Callable[[int, int], None]
) -> Iterator[Predictions]:
    on_progress(done, images)
    for row in said:
        yield row
        done += len(row.path)
        on_progress(done, images)


def _name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _begin(release: LoadedRelease, source: ImageSource, wanted: PredictOptions, out: str) -> None:
    """Say what will be here. Raises DatasetError where something else is."""
    told = {"model": release.reference, "weights": release.sha256, "source": source.digest,
            **asdict(wanted)}  # fmt: skip
    uri = storage.join(out, BEGUN)
    if not storage.exists(uri):
        if storage.sizes(out):
            raise DatasetError(f"{out} has files that are no predictions: choose another --out")
        storage.write_bytes(uri, json.dumps(told, indent=1).encode())
        return
    try:
        there = json.loads(storage.read_bytes(uri))
    except ValueError:
        there = None
    there = there if isinstance(there, dict) else {}
    if there != told:
        other = ", ".join(name for name in told if there.get(name) != told[name])
        raise DatasetError(
            f"{out} has predictions of another {other}: choose another --out, or delete them"
        )


def _write(said: Sequence[Predictions], part: int, classes: Sequence[str], out: str) -> None:
    """Write a part, and before it what could not be read: so all of it is there, or nothing."""
    bad = [row for some in said for row in some.bad_rows]
    quarantine = storage.join(out, QUARANTINE, _name(part))
    if bad:
        table = pa.table({"path": [path for path, _ in bad], "reason": [why for _, why in bad]})
        parquet.write_table(quarantine, table)
    else:
        storage.delete(quarantine)  # of a call that was killed before it wrote the part
    parquet.write_table(storage.join(out, _name(part)), _table(said, classes))


def _table(said: Sequence[Predictions], classes: Sequence[str]) -> pa.Table:
    """The rows of a part."""
    rows = [row for some in said for row in some.good_rows]
    labels = [[classes[number] for number in label] for _, label, _ in rows]
    columns = {
        "path": pa.array([path for path, _, _ in rows], pa.string()),
        "label": pa.array([own[0] for own in labels], pa.string()),
        "labels": pa.array(labels, pa.list_(pa.string())),
        "probabilities": pa.array([share for _, _, share in rows], pa.list_(pa.float32())),
    }
    parts = [some.embedding for some in said if some.embedding is not None]
    if parts:
        whole = np.ascontiguousarray(np.concatenate(parts))
        flat = pa.array(whole.reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, whole.shape[1])
    return pa.table(columns)


def _conclude(
    parts: Sequence[tuple[int, Sequence[ImageUnit]]], source: ImageSource, out: str
) -> PredictResult:
    """Count what is there. Raises EvaluationError where it is not one row for each image."""
    names = [_name(number) for number, _ in parts]
    rows = sum(_rows(storage.join(out, name)) for name in names)
    bad = storage.sizes(storage.join(out, QUARANTINE))
    quarantined = sum(_rows(storage.join(out, QUARANTINE, name)) for name in names if name in bad)
    if rows + quarantined != source.images:
        raise EvaluationError(
            f"{out} has {rows:,} rows and {quarantined:,} quarantined images, {source.uri} has "
            f"{source.images:,} images: it changed meanwhile; predict again into another --out"
        )
    if not rows:
        raise DatasetError(
            f"none of the {source.images:,} images of {source.uri} can be read: see {QUARANTINE} "
            f"of {out} for the reasons"
        )
    predicted = PredictResult(source.images, rows, quarantined, out)
    storage.write_bytes(storage.join(out, DONE), json.dumps(asdict(predicted), indent=1).encode())
    return predicted


def _rows(uri: str) -> int:
    try:
        footer = parquet.read_footer(uri)
    except pa.ArrowException as error:
        why = " ".join(str(error).split())[:200]
        raise DatasetError(f"{uri} is damaged ({why}): delete it and predict again") from error
    return int(footer.num_rows)
