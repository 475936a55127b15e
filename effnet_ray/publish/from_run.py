"""Publishing a finished run: the weights of its best epoch, with metrics, card and provenance."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch

from effnet_ray import storage
from effnet_ray.errors import CheckpointError, ReleaseError
from effnet_ray.model import network, pretrained
from effnet_ray.model.references import References
from effnet_ray.publish.calibrate import FittedCalibration, fit_calibration
from effnet_ray.publish.card import model_card
from effnet_ray.publish.options import ReleaseOptions
from effnet_ray.publish.provenance import provenance
from effnet_ray.publish.test_score import Scoring
from effnet_ray.release.names import Release
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format import layout
from effnet_ray.release_format.calibration import CALIBRATION
from effnet_ray.release_format.config import UNKNOWN
from effnet_ray.reporting.training_curves import training_curves_png
from effnet_ray.storage.checksummed_json import to_json
from effnet_ray.train import checkpoint, eval_outputs, run_record
from effnet_ray.train.checkpoint import Checkpoint
from effnet_ray.train.class_metrics import ClassMetrics, has_average_precision
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.run_record import Result, Run

OPTIONS = "release_options"
"""Key in release.json."""


def release_run(
    result: Result,
    store: ModelStore,
    *,
    name: str | None = None,
    found_by: Mapping[str, Any] | None = None,
    scoring: Scoring | None = None,
    options: ReleaseOptions = ReleaseOptions(),  # noqa: B008  # frozen
) -> Release:
    """Publish a finished run's best checkpoint in `store`, under `name` or the run's own name.

    A run that is published already is neither scored nor published again: its release is
    returned. `found_by` is the provenance of a sweep's trial; `scoring` scores the test split if
    the data has one; `options` say how the release decides. Raises ReleaseError if the run's
    record or best checkpoint is missing or damaged, and whatever `scoring` raises.
    """
    try:
        source = _read_run(result, options)
    except CheckpointError as error:
        release = store.find_published(name or result.run, run=result.run_uri)
        if release:
            return release
        raise ReleaseError(
            f"run {result.run!r} cannot be released: {error}: restore the checkpoint from a "
            "backup, or train again under another --name"
        ) from error
    name = name or source.run.name
    digest = hashlib.sha256(source.weights).hexdigest()
    release = store.find_published(name, run=result.run_uri, weights_sha256=digest)
    if release:
        return release
    origin = provenance(source.run, result, source.checkpoint.step, source.history, found_by)
    origin |= {OPTIONS: asdict(options)}
    test: dict[str, float] = {}
    if scoring:
        candidate = _release_files(name, source, {})
        test = scoring(result.run_uri, candidate, origin, source.run.recipe.limit)
    files = _release_files(name, source, test)
    return store.publish(name, files, origin | test)


@dataclass(frozen=True, slots=True)
class _FinishedRun:
    """What a release is made from."""

    run: Run
    history: Sequence[EpochReport]
    """Every epoch of the run, including those after the best."""
    checkpoint: Checkpoint
    """The checkpoint of the best epoch."""
    best: EpochReport
    weights: bytes
    """The weights to release, as safetensors."""
    fitted: FittedCalibration | None
    """None with too few eval images, and of checkpoints without their outputs (version 0.1); so
    are the references."""
    references: References | None


def _read_run(result: Result, options: ReleaseOptions) -> _FinishedRun:
    """Read the run. Raises CheckpointError, or ReleaseError if the run has no record."""
    run = run_record.load(result.run_uri)
    if run is None:
        raise ReleaseError(f"{result.run_uri} has no {run_record.RUN}: run the same command again")
    best_checkpoint = checkpoint.open_checkpoint(result.checkpoint)
    best_epoch = best(best_checkpoint.history)
    assert best_epoch is not None  # the best checkpoint was written after an evaluated epoch
    weights = best_checkpoint.read(checkpoint.AVERAGED if best_epoch.averaged else layout.WEIGHTS)
    last = storage.join(result.run_uri, run_record.CHECKPOINTS, checkpoint.folder(result.steps))
    history = checkpoint.open_checkpoint(last).history
    fitted = references = None
    if checkpoint.EVAL_OUTPUTS in best_checkpoint.files:
        outputs = safetensors.torch.load(best_checkpoint.read(checkpoint.EVAL_OUTPUTS))
        logits, label = outputs[eval_outputs.LOGITS], outputs[eval_outputs.LABEL]
        fitted = fit_calibration(logits.numpy(), label.numpy(), options.min_precision)
        references = References.fit(
            outputs[eval_outputs.FEATURES],
            outputs[eval_outputs.ID],
            label,
            options.false_alarms,
        )
    return _FinishedRun(run, history, best_checkpoint, best_epoch, weights, fitted, references)


def _release_files(name: str, source: _FinishedRun, test: Mapping[str, float]) -> dict[str, bytes]:
    """The files of the release; `test` holds the metrics on the test split, if it was scored."""
    run, per_class, fitted = source.run, source.checkpoint.progress.per_class, source.fitted
    references, extra = source.references, dict[str, Any]()
    if fitted:
        extra[CALIBRATION] = fitted.calibration.to_json()
    if references:
        extra[UNKNOWN] = {"threshold": references.threshold}
    model = network.build(run.recipe, run.spec, len(run.classes))
    metrics = {
        "best": asdict(source.best),
        **({"test": dict(test)} if test else {}),
        **({"calibration": source.fitted.metrics} if source.fitted else {}),
        **({"per_class": _class_rows(run.classes, per_class)} if per_class else {}),
        "history": [asdict(report) for report in source.history],
    }
    config = pretrained.hub_config(model, run.spec, run.classes, extra)
    card = model_card(name, run, source.history, per_class, test, fitted)
    return {
        layout.WEIGHTS: source.weights,
        **({layout.REFERENCES: references.to_bytes()} if references else {}),
        layout.CURVES: training_curves_png(source.history),
        layout.CARD: card.encode(),
        layout.CONFIG: to_json(config),
        layout.RECIPE: to_json(asdict(run.recipe)),
        layout.METRICS: to_json(metrics),
    }


def _class_rows(names: tuple[str, ...], per_class: Sequence[ClassMetrics]) -> list[dict[str, Any]]:
    """Metrics of each class on the eval split, as metrics.json has them."""
    with_ap = has_average_precision(per_class)
    return [
        {
            "class": names[metrics.index],
            "images": metrics.support,
            "precision": metrics.precision,
            "recall": metrics.recall,
            "f1": metrics.f1,
            **({"ap": metrics.ap} if with_ap else {}),
        }
        for metrics in per_class
    ]
