"""What a release says of images: tasks make views, actors with its network look at them."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ray

from effnet_ray.data.chunks import Block
from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import ImageError
from effnet_ray.inference.image_sources import ImageSource, ImageUnit
from effnet_ray.inference.options import PredictOptions
from effnet_ray.inference.scorer import Scorer, top_k
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime import session
from effnet_ray.runtime.inference_actors import (
    ActorPool,
    MachineShare,
    as_single_row,
    batch_images,
    execute,
)
from effnet_ray.variants import InputSpec


@dataclass(frozen=True, slots=True)
class Predictions:
    """What was said of some images of a part."""

    part: int
    path: list[str]
    bad: list[str]
    """Why an image could not be read; else empty."""
    label: list[list[int]]
    probability: list[list[float]]
    """[n, top]: outputs of the network, and how likely each is."""
    embedding: npt.NDArray[np.float16] | None = None
    """[m, F] of those that could be read."""

    @property
    def good_rows(self) -> list[tuple[str, list[int], list[float]]]:
        """(path, labels, probabilities) of what could be read."""
        every = zip(self.path, self.label, self.probability, strict=True)
        return [row for row, why in zip(every, self.bad, strict=True) if not why]

    @property
    def bad_rows(self) -> list[tuple[str, str]]:
        """(path, reason) of what could not."""
        return [(path, why) for path, why in zip(self.path, self.bad, strict=True) if why]


def predict_parts(
    release: LoadedRelease,
    source: ImageSource,
    parts: Sequence[tuple[int, Sequence[ImageUnit]]],
    wanted: PredictOptions,
    placement: Placement,
    lease: session.ResourceRequest,
) -> Iterator[Predictions]:
    """What is said of the images of these parts, in order: one Ray Data execution."""
    work = [(number, unit) for number, units in parts for unit in units]
    actors = ActorPool.of(placement, lease, len(work))
    most = batch_images(release.recipe, release.spec.resolution)
    spec, shared = release.spec, ray.put(source)

    def views(batch: Block) -> Iterator[Block]:
        here: ImageSource = ray.get(shared)
        for described in batch["unit"].tolist():
            part, place = json.loads(described)
            yield from _views(here, here.units[place], part, spec, most)

    place = {unit: number for number, unit in enumerate(source.units)}
    described = [{"unit": json.dumps([part, place[unit]])} for part, unit in work]
    told = (wanted, release.uri, release.sha256, actors.share)
    blocks = execute(described, views, PredictingActor, told, actors)
    for block in blocks:
        for about, embedding in zip(block["said"].tolist(), block["embedding"], strict=True):
            said = json.loads(about)
            good = [not why for why in said["bad"]]
            rows = np.asarray(embedding)[good] if wanted.embeddings else None
            yield Predictions(**said, embedding=rows)


def _views(
    source: ImageSource, unit: ImageUnit, part: int, spec: InputSpec, most: int
) -> Iterator[Block]:
    """A unit's views, `most` at a time, each time as one row."""
    images = source.read(unit)
    while some := list(itertools.islice(images, most)):
        views = np.zeros((len(some), spec.resolution, spec.resolution, 3), np.uint8)
        bad = [_view(data, spec, view) for (_, data), view in zip(some, views, strict=True)]
        about = {"part": part, "path": [path for path, _ in some], "bad": bad}
        yield {"image": as_single_row(views), "about": np.asarray([json.dumps(about)], object)}


def _view(data: bytes | ImageError, spec: InputSpec, view: npt.NDArray[np.uint8]) -> str:
    """Make the view in place; why it could not be made, else nothing."""
    try:
        if isinstance(data, ImageError):
            raise data
        view[:] = eval_view(decode(data), spec)
    except ImageError as error:
        return str(error)
    return ""


class PredictingActor:
    """An actor with the network."""

    def __init__(
        self, wanted: PredictOptions, release: str, sha256: str, share: MachineShare
    ) -> None:
        """As of `Scorer`."""
        self._sight = Scorer(release, sha256, share)
        self._top = min(wanted.top or self._sight.classes, self._sight.classes)
        self._embeds = wanted.embeddings

    def __call__(self, batch: Block) -> Iterator[Block]:
        """What every row of views shows."""
        for image, about in zip(batch["image"], batch["about"], strict=True):
            features, logits = self._sight.features_and_logits(image)
            labels, shares = top_k(logits, several=self._sight.several, top=self._top)
            told = {"label": labels.tolist(), "probability": shares.tolist()}
            said = json.loads(about) | told
            rows = features.half().cpu().numpy() if self._embeds else np.empty(0, np.float16)
            yield {
                "said": np.asarray([json.dumps(said)], object),
                "embedding": as_single_row(rows),
            }
