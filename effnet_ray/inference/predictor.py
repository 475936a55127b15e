"""Predictions of a release: Ray Data tasks preprocess images, actors with the network predict."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ray

from effnet_ray.data.chunks import Block
from effnet_ray.data.views import write_eval_view
from effnet_ray.inference.image_sources import ImageSource, ImageUnit
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.scorer import Scorer, top_k
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime import session
from effnet_ray.runtime.inference_actors import (
    ActorPool,
    MachineShare,
    batch_images,
    decode_rows,
    encode_row,
    execute,
)
from effnet_ray.variants import InputSpec

Part = tuple[int, Sequence[ImageUnit]]
"""A file of predictions: its number, and the units whose images it has."""


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """The prediction for one image."""

    path: str
    label: list[int]
    """[top]"""
    probability: list[float]
    """[top]"""
    unknown: float | None
    is_unknown: bool | None
    predicted: list[int] | None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for some images of a part."""

    part: int
    path: list[str]
    error: list[str]
    """Why an image could not be read; empty if it could."""
    label: list[list[int]]
    """[n, top]: the most probable outputs of the network, for unreadable images too."""
    probability: list[list[float]]
    """[n, top]: their probabilities."""
    unknown: list[float] | None = None
    """[n]: how unlike the release's images they are; None if the release has no references."""
    is_unknown: list[bool] | None = None
    """[n]: whether they are called unknown."""
    predicted: list[list[int]] | None = None
    """Of each image the outputs whose probability reaches their threshold, with any number of
    classes per image."""
    embedding: npt.NDArray[np.float16] | None = None
    """[m, F]: features of the readable images."""

    @property
    def readable_rows(self) -> list[PredictedRow]:
        """The readable images."""
        nothing = [None] * len(self.path)
        rows = zip(
            self.path,
            self.label,
            self.probability,
            self.unknown or nothing,
            self.is_unknown or nothing,
            self.predicted or nothing,
            strict=True,
        )
        return [
            PredictedRow(*row) for row, error in zip(rows, self.error, strict=True) if not error
        ]

    @property
    def unreadable_rows(self) -> list[tuple[str, str]]:
        """(path, reason) of images that could not be read."""
        return [row for row in zip(self.path, self.error, strict=True) if row[1]]


def predict_parts(
    release: LoadedRelease,
    source: ImageSource,
    parts: Sequence[Part],
    options: PredictOptions,
    placement: Placement,
    request: session.ResourceRequest,
) -> Iterator[Predictions]:
    """Predict the images of these parts in one Ray Data execution; the results in their order."""
    spec, max_images = release.spec, batch_images(release.recipe, release.spec.resolution)
    work = work_items(source, parts)
    actors = ActorPool.of(placement, request, len(work))
    shared_source = ray.put(source)

    def preprocess(batch: Block) -> Iterator[Block]:
        yield from preprocess_units(batch, ray.get(shared_source), spec, max_images)

    arguments = (options, release.uri, release.sha256, actors.share)
    for block in execute(work, preprocess, PredictingActor, arguments, actors):
        yield from decode_predictions(block, options)


def work_items(source: ImageSource, parts: Sequence[Part]) -> list[dict[str, str]]:
    """The items of Ray Data: each a part's number and the index of one of its units, as JSON."""
    index = {unit: number for number, unit in enumerate(source.units)}
    return [{"unit": json.dumps([part, index[unit]])} for part, units in parts for unit in units]


def preprocess_units(
    items: Block, source: ImageSource, spec: InputSpec, max_images: int
) -> Iterator[Block]:
    """Views of the images of these items, in rows of up to `max_images`."""
    for encoded in items["unit"].tolist():
        part, index = json.loads(encoded)
        yield from _preprocessed_rows(source, source.units[index], part, spec, max_images)


def decode_predictions(block: Block, options: PredictOptions) -> Iterator[Predictions]:
    """The predictions in a block of `PredictingActor`."""
    for metadata, arrays in decode_rows(block):
        readable = [not error for error in metadata["error"]]
        embedding = np.asarray(arrays["embedding"])[readable] if options.embeddings else None
        yield Predictions(**metadata, embedding=embedding)


def _preprocessed_rows(
    source: ImageSource, unit: ImageUnit, part: int, spec: InputSpec, max_images: int
) -> Iterator[Block]:
    """One row for up to `max_images` images of a unit."""
    images = source.read(unit)
    while batch := list(itertools.islice(images, max_images)):
        views = np.zeros((len(batch), spec.resolution, spec.resolution, 3), np.uint8)
        errors = [
            write_eval_view(data, spec, view)[1]
            for (_, data), view in zip(batch, views, strict=True)
        ]
        metadata = {"part": part, "path": [path for path, _ in batch], "error": errors}
        yield encode_row(metadata, views=views)


class PredictingActor:
    """Predicts preprocessed images with a release's network."""

    def __init__(
        self, options: PredictOptions, uri: str, sha256: str, share: MachineShare
    ) -> None:
        """See `Scorer`."""
        self._scorer = Scorer(uri, sha256, share)
        self._top = min(options.top or self._scorer.classes, self._scorer.classes)
        self._embeddings = options.embeddings

    def __call__(self, batch: Block) -> Iterator[Block]:
        """One row of predictions for each row of views."""
        for metadata, arrays in decode_rows(batch):
            features, logits = self._scorer.features_and_logits(arrays["views"])
            probability = self._scorer.probabilities(logits)
            labels, values = top_k(probability, self._top)
            metadata |= {"label": labels.tolist(), "probability": values.tolist()}
            unknown = self._scorer.unknown(features)
            if unknown is not None:
                metadata["unknown"] = unknown.tolist()
                metadata["is_unknown"] = [*map(self._scorer.is_unknown, metadata["unknown"])]
            if self._scorer.multilabel:
                metadata["predicted"] = self._scorer.predicted(probability)
            embedding = np.empty(0, np.float16)
            if self._embeddings:
                embedding = features.half().cpu().numpy()
            yield encode_row(metadata, embedding=embedding)
