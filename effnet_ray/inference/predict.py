"""Prediction of all images of a source into Parquet; a repeated call completes the missing parts.

    OUT/part-00000.parquet …             path, label, labels, probabilities,
                                         unknown, is_unknown, (predicted), (embedding)
    OUT/_quarantine/part-00000.parquet   path, reason: images that could not be read
    OUT/_begun.json, OUT/_done.json      the options, written first; the result, written last

This process writes each part once all of its predictions have arrived. Readers of Parquet folders
skip names that begin with an underscore.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from effnet_ray import safe_json, storage
from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.errors import DamagedError, DatasetError, EvaluationError
from effnet_ray.inference import image_sources
from effnet_ray.inference.image_sources import ImageSource
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.predictor import Part, Predictions, predict_parts
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease
from effnet_ray.release_format.calibration import Calibration
from effnet_ray.runtime import gpus, session
from effnet_ray.runtime.inference_actors import as_evaluation_error
from effnet_ray.storage import parquet

PART_IMAGES = 4096
"""Approximate rows of a part; an interruption loses at most the parts in progress, minutes of work
on a CPU. Chosen, not measured."""
STARTED, DONE, QUARANTINE = "_begun.json", "_done.json", "_quarantine"


@dataclass(frozen=True, slots=True)
class PredictResult:
    """The result of a prediction job. Field names are keys of `_done.json`."""

    images: int
    rows: int
    quarantined: int
    out: str


def predict(
    release: LoadedRelease,
    source: str,
    out: str,
    placement: Placement,
    options: PredictOptions = PredictOptions(),  # noqa: B008  # frozen
    *,
    on_progress: Callable[[int, int], None] | None = None,
    connect: Callable[[Placement], object] | None = None,
) -> PredictResult:
    """Predict every image of `source` into the folder `out`; completes an interrupted call.

    `on_progress`: called with (images done, all images). `connect`: joins or starts Ray, after all
    inputs were checked. Raises DatasetError for a source without images or an `out` with other
    content, before it asks the cluster for resources; EvaluationError if it fails later.
    """
    out = storage.absolute(out)
    images = image_sources.find_images(source, options.split)
    _start(release, images, options, out)
    parts = list[Part](enumerate(images.parts(PART_IMAGES)))
    existing = storage.sizes(out)
    missing = [part for part in parts if _file_name(part[0]) not in existing]
    if missing:
        connect = connect or partial(session.connect, local=False, verbose=False)
        placement = gpus.with_default_gpus(placement, connect)
        connect(placement)
        request = session.request_resources(placement, [images.uri, release.uri])
        predictions = unwrap_errors(
            predict_parts(release, images, missing, options, placement, request)
        )
        if on_progress:
            done = images.images - sum(unit.images for _, units in missing for unit in units)
            predictions = _report_progress(predictions, done, images.images, on_progress)
        with as_evaluation_error("predicting"):
            for number, batches in itertools.groupby(predictions, lambda batch: batch.part):
                _write_part(list(batches), number, release.classes, out)
    return finish(parts, images, out)


def _report_progress(
    predictions: Iterator[Predictions],
    done: int,
    images: int,
    on_progress: Callable[[int, int], None],
) -> Iterator[Predictions]:
    on_progress(done, images)
    for batch in predictions:
        yield batch
        done += len(batch.path)
        on_progress(done, images)


def _file_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _start(release: LoadedRelease, source: ImageSource, options: PredictOptions, out: str) -> None:
    """Record what is predicted into `out`. Raises DatasetError if `out` has other content."""
    calibration = release.calibration
    record = {
        "model": release.reference,
        "weights": release.sha256,
        # Not of a release without: version 0.1 recorded none.
        **({"calibration": calibration.to_json()} if calibration != Calibration() else {}),
        "source": source.digest,
        **asdict(options),
    }
    uri = storage.join(out, STARTED)
    if not storage.exists(uri):
        if others := sorted(storage.sizes(out)):
            raise DatasetError(
                f"{out} has files that are not predictions ({', '.join(others[:3])}): choose "
                "another --out"
            )
        storage.write_bytes(uri, json.dumps(record, indent=1).encode())
        return
    try:
        existing = safe_json.parse(storage.read_bytes(uri))
    except ValueError:
        existing = None
    existing = existing if isinstance(existing, dict) else {}
    if existing != record:
        different = ", ".join(name for name in record if existing.get(name) != record[name])
        raise DatasetError(
            f"{out} has predictions made with other settings ({different}): choose another --out, "
            "or delete them"
        )


def _write_part(
    predictions: Sequence[Predictions], part: int, classes: Sequence[str], out: str
) -> None:
    """Write a part, its unreadable images first: if the part exists, it is complete."""
    unreadable = [row for batch in predictions for row in batch.unreadable_rows]
    quarantine = storage.join(out, QUARANTINE, _file_name(part))
    if unreadable:
        paths, reasons = zip(*unreadable, strict=True)
        parquet.write_table(quarantine, pa.table({"path": paths, "reason": reasons}))
    else:
        storage.delete(quarantine)  # left by a call that was killed before it wrote the part
    parquet.write_table(storage.join(out, _file_name(part)), _as_table(predictions, classes))


def _as_table(predictions: Sequence[Predictions], classes: Sequence[str]) -> pa.Table:
    """The rows of a part."""
    rows = [row for batch in predictions for row in batch.readable_rows]
    labels = [[classes[index] for index in row.label] for row in rows]
    columns = {
        "path": pa.array([row.path for row in rows], pa.string()),
        "label": pa.array([names[0] for names in labels], pa.string()),
        "labels": pa.array(labels, pa.list_(pa.string())),
        "probabilities": pa.array([row.probability for row in rows], pa.list_(pa.float32())),
        "unknown": pa.array([row.unknown for row in rows], pa.float32()),
        "is_unknown": pa.array([row.is_unknown for row in rows], pa.bool_()),
    }
    if any(batch.predicted is not None for batch in predictions):
        names = [[classes[index] for index in row.predicted or ()] for row in rows]
        columns["predicted"] = pa.array(names, pa.list_(pa.string()))
    embeddings = [batch.embedding for batch in predictions if batch.embedding is not None]
    if embeddings:
        matrix = np.ascontiguousarray(np.concatenate(embeddings))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            pa.array(matrix.reshape(-1)), matrix.shape[1]
        )
    return pa.table(columns)


def finish(parts: Sequence[Part], source: ImageSource, out: str) -> PredictResult:
    """Count the rows and record the result.

    Raises EvaluationError if there is not one row or quarantined image for each image.
    """
    names = [_file_name(number) for number, _ in parts]
    rows = sum(_count_rows(storage.join(out, name)) for name in names)
    quarantine = storage.join(out, QUARANTINE)
    existing = storage.sizes(quarantine)
    quarantined = sum(
        _count_rows(storage.join(quarantine, name)) for name in names if name in existing
    )
    if rows + quarantined != source.images:
        raise EvaluationError(
            f"{out} has {rows:,} rows and {quarantined:,} quarantined images, but {source.uri} "
            f"has {source.images:,} images: the source changed during the prediction; "
            "predict again into another --out"
        )
    if not rows:
        raise DatasetError(
            f"none of the {source.images:,} images of {source.uri} can be read: see the "
            f"reasons in {quarantine}"
        )
    result = PredictResult(source.images, rows, quarantined, out)
    storage.write_bytes(storage.join(out, DONE), json.dumps(asdict(result), indent=1).encode())
    return result


def _count_rows(uri: str) -> int:
    try:
        return int(parquet.read_footer(uri).num_rows)
    except DamagedError as error:
        raise DatasetError(
            f"{uri} is damaged: delete it and run the same command again"
        ) from error
