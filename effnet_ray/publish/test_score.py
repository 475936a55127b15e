"""Scoring the test split: once, with the weights about to be released, after every choice.

RUNS/NAME/test.json       the metrics, and the weights and data that they belong to
RUNS/NAME/candidate-*/    the unpublished release, while it is being scored
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effnet_ray import safe_json, storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import EffnetRayError
from effnet_ray.inference.evaluate import evaluate
from effnet_ray.placement import Placement
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release.publish import write_unpublished
from effnet_ray.storage.checksummed_json import to_json

TEST = "test"
CANDIDATE = "candidate-"
SCORE_FILE = "test.json"


def _ignore_progress(done: int, images: int) -> None:
    pass


@dataclass(frozen=True)
class Scoring:
    """How to score the test split of a run's data set. Calling it scores a release."""

    data: str
    """URI of the data set that the run was trained on."""
    placement: Placement
    connect: Callable[[Placement], object]
    """Connects to Ray, or starts it, if that is necessary."""
    on_progress: Callable[[int, int], None] = _ignore_progress
    """Called with the number of images done and of all images."""

    def __call__(
        self,
        run_uri: str,
        files: Mapping[str, bytes],
        provenance: Mapping[str, Any],
        limit: int | None,
    ) -> dict[str, float]:
        """Return the release's `TEST_METRICS`, by their keys, and `test_images`.

        Without a test split the result is empty. The same weights are scored on the same data
        only once. Raises InputError, EvaluationError.
        """
        manifest = manifests.load(self.data).limited(limit)
        if not manifest.images.get(TEST):
            return {}
        # The name is unique because another process may be scoring the same run.
        candidate = storage.join(run_uri, f"{CANDIDATE}{uuid.uuid4().hex}")
        write_unpublished(candidate, files, provenance)
        try:
            release = load_release(candidate, "")
            recorded = _read_scores(run_uri, release, manifest)
            return recorded or self._score(run_uri, release, manifest, limit)
        except EffnetRayError as error:
            raise type(error)(
                f"the test split cannot be scored: {error}; to release without a test score, "
                "pass --no-test-split"
            ) from error
        finally:
            storage.delete(candidate)

    def _score(
        self, run_uri: str, release: LoadedRelease, manifest: Manifest, limit: int | None
    ) -> dict[str, float]:
        """Evaluate the release on the test split, and record its metrics in the run's folder."""
        metrics = evaluate(
            release,
            self.data,
            self.placement,
            split=TEST,
            limit=limit,
            on_progress=self.on_progress,
            connect=self.connect,
        ).metrics
        scores = {metric.on(TEST).key: value for metric, value in metrics.scores.items()}
        scores["test_images"] = metrics.images
        record = {**_score_key(release, manifest), "figures": scores}
        storage.write_bytes(storage.join(run_uri, SCORE_FILE), to_json(record))
        return scores


def _score_key(release: LoadedRelease, manifest: Manifest) -> dict[str, Any]:
    """The weights and the data that scores belong to."""
    images = manifest.images[TEST]
    return {"weights": release.sha256, "data": manifest.fingerprint, "images": images}


def _read_scores(run_uri: str, release: LoadedRelease, manifest: Manifest) -> dict[str, float]:
    """The recorded scores of these weights on this data; empty if there are none."""
    uri = storage.join(run_uri, SCORE_FILE)
    if not storage.exists(uri):
        return {}
    try:
        record = safe_json.parse(storage.read_bytes(uri))
        scores: dict[str, float] = record.pop("figures")
    except (ValueError, LookupError, AttributeError):
        return {}  # damaged: score again
    return scores if record == _score_key(release, manifest) else {}
