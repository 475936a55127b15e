"""How well a release tells pictures of nothing it knows from those of an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.errors import DatasetError, ReleaseError
from effnet_ray.inference import image_sources
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.predictor import predict_parts
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime import gpus, session
from effnet_ray.runtime.inference_actors import as_evaluation_error

UNIT_IMAGES = 256
"""Approximate images of a part: the steps in which progress is reported."""
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class UnknownPictures:
    """The scores of pictures that a release should call unknown."""

    source: str
    """Their URI."""
    scores: Scores
    """[n]: of the readable ones."""
    flagged: float
    """Share of them that the release calls unknown, 0 to 1."""
    auroc: float
    """Share of pairs of one of them and an evaluated image in which its score is higher; 0.5 is
    chance, 1 is perfect."""


def score_unknown(
    release: LoadedRelease,
    source: str,
    evaluated: Scores,
    placement: Placement,
    *,
    connect: Callable[[Placement], object],
    on_progress: Callable[[int, int], None] | None = None,
) -> UnknownPictures:
    """Score the pictures of `source`, none of which the release knows.

    `evaluated` [n]: the scores of evaluated images. The others are those of `evaluate`. Raises
    DatasetError if no picture can be read, EvaluationError.
    """
    assert release.references is not None  # see `check_references`
    pictures = image_sources.find_images(source)
    parts = list(enumerate(pictures.parts(UNIT_IMAGES)))
    placement = gpus.with_default_gpus(placement, connect)
    connect(placement)
    request = session.request_resources(placement, [pictures.uri, release.uri])
    values, done = list[float](), 0
    with as_evaluation_error("scoring unknown pictures"):
        for batch in unwrap_errors(
            predict_parts(release, pictures, parts, PredictOptions(top=1), placement, request)
        ):
            values += [row.unknown for row in batch.readable_rows if row.unknown is not None]
            done += len(batch.path)
            if on_progress:
                on_progress(done, pictures.images)
    if not values:
        raise DatasetError(f"none of the {pictures.images:,} pictures of {source} can be read")
    scores = np.asarray(values, np.float32)
    flagged = float((scores > release.references.threshold).mean())
    return UnknownPictures(pictures.uri, scores, flagged, auroc(evaluated, scores))


def check_references(release: LoadedRelease) -> None:
    """Raise ReleaseError if the release cannot tell unknown pictures."""
    if release.references is None:
        raise ReleaseError(
            f"{release.reference} cannot tell unknown pictures: it has no references "
            "(it is older than they are, or had fewer than 20 eval images): release the run again "
            "under another name, or use another release"
        )


def auroc(evaluated: npt.NDArray[Any], unknown: npt.NDArray[Any]) -> float:
    """Share of (unknown, evaluated) pairs whose unknown has the higher score; ties count half.

    The area under the receiver operating characteristic, by ranks (Mann and Whitney 1947).
    """
    ranks = rankdata(np.concatenate([evaluated, unknown]))[len(evaluated) :]
    above = ranks.sum() - len(unknown) * (len(unknown) + 1) / 2
    return float(above / (len(evaluated) * len(unknown)))
