"""The test split, scored once: by what is about to be released, after every choice was made.

RUNS/NAME/test.json           the figures, and of which weights and data they are
RUNS/NAME/candidate-*/        the release before it is one, for as long as it is being scored
"""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import EffnetRayError
from effnet_ray.inference.evaluate import evaluate
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.placement import Placement
from effnet_ray.release import publish
from effnet_ray.release.load import LoadedRelease, load_release

TEST = "test"
CANDIDATE = "candidate-"
FIGURES = "test.json"


@dataclass(frozen=True)
class Scoring:
    """Who scores, and by which data."""

    data: str
    """URI of the data set that the run was trained on."""
    placement: Placement
    connect: Callable[[Placement], object]
    """Joins or starts Ray, where it must."""
    on_progress: Callable[[int, int], None] = lambda done, images: None
    """Hears how many images are done, of how many."""

    def __call__(
        self, run_uri: str, files: Mapping[str, bytes], told: Mapping[str, Any], limit: int | None
    ) -> dict[str, float]:
        """`test_top1`, `test_top5`, `test_loss` and `test_images` of what these files release.

        And `test_map` where images may have several classes; nothing where the data has no such
        images. Raises InputError, EvaluationError.
        """
        manifest = manifests.load(self.data).limited(limit)
        if not manifest.images.get(TEST):
            return {}
        candidate = storage.join(run_uri, f"{CANDIDATE}{uuid.uuid4().hex}")  # others may score it
        publish.write_unpublished(candidate, files, told)
        try:
            release = load_release(candidate, "")
            known = _known(run_uri, release, manifest)
            return known or self._scored(run_uri, release, manifest, limit)
        except EffnetRayError as error:
            raise type(error)(
                f"the test split cannot be scored: {error}; or release without its score: "
                "--no-test-split"
            ) from error
        finally:
            storage.delete(candidate)

    def _scored(
        self, run_uri: str, release: LoadedRelease, manifest: Manifest, limit: int | None
    ) -> dict[str, float]:
        figures = evaluate(
            release,
            self.data,
            self.placement,
            split=TEST,
            limit=limit,
            on_progress=self.on_progress,
            connect=self.connect,
        ).metrics
        found: dict[str, float] = {
            "test_top1": figures.top1,
            "test_top5": figures.top5,
            "test_loss": figures.loss,
            "test_images": figures.images,
            **({"test_map": figures.mean_ap} if isinstance(figures, MultilabelMetrics) else {}),
        }
        record = {**_of(release, manifest), "figures": found}
        storage.write_bytes(storage.join(run_uri, FIGURES), json.dumps(record, indent=1).encode())
        return found


def _of(release: LoadedRelease, manifest: Manifest) -> dict[str, Any]:
    """What figures are of."""
    images = manifest.images[TEST]
    return {"weights": release.sha256, "data": manifest.fingerprint, "images": images}


def _known(run_uri: str, release: LoadedRelease, manifest: Manifest) -> dict[str, float]:
    """The figures, if these weights were scored on these images before."""
    uri = storage.join(run_uri, FIGURES)
    if not storage.exists(uri):
        return {}
    try:
        told = json.loads(storage.read_bytes(uri))
        figures: dict[str, float] = told.pop("figures")
    except (ValueError, LookupError, AttributeError):
        return {}  # torn: scored again
    return figures if told == _of(release, manifest) else {}
