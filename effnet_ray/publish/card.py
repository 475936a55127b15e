"""The model card: README.md of a release."""

from collections.abc import Mapping, Sequence

from effnet_ray.publish.calibrate import FittedCalibration
from effnet_ray.recipe import MULTICLASS, MULTILABEL
from effnet_ray.train.class_metrics import ClassMetrics, has_average_precision, macro_f1
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.metric_definitions import (
    EVAL_LOSS,
    EVAL_METRICS,
    TEST_METRICS,
    TRAIN_LOSS,
)
from effnet_ray.train.run_record import Run

MAX_CLASSES = 20
"""Classes that the card lists; metrics.json and config.json contain all of them."""

PURPOSE = {
    MULTICLASS: "classifies images into {classes} classes",
    MULTILABEL: "predicts which of {classes} classes an image contains",
}
INTENDED_USE = {
    MULTICLASS: """\
For images like those it was trained on, with exactly one label each: {names}. It assigns one of
these labels to any image: a high probability is no proof that the image shows any of them.""",
    MULTILABEL: """\
For images like those it was trained on, with any number of labels each: {names}. The model returns
one logit per class, from which the probability of that class is made, independent of the
others.""",
}

CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, efficientnet]
---
# {name}

An {variant} that {purpose}, fine-tuned with
[effnet_ray](https://pypi.org/project/effnet-ray/).

## Intended use

{intended_use}

## Evaluation

Measured on the {eval_images} images of the eval split, which the model was not trained on.
{selection}

{metrics}

In parentheses: the 95 % confidence interval, by the number of images (Wilson).
{test}
{calibration}
{per_class}

## Training

{training}

![Loss and {score} of every epoch](curves.png)

{epochs}

`recipe.json` contains the complete recipe, `metrics.json` the metrics of every epoch, and
`release.json` the SHA-256 of every file, library versions and the cost of the run.

## Usage

With timm, from a local copy of this folder:

```python
{imports}import timm
from PIL import Image, ImageOps

model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = model.pretrained_cfg["label_names"]

image = ImageOps.exif_transpose(Image.open("PHOTO.jpg")).convert("RGB")
logits = model(transform(image)[None])[0]
{probabilities}
```

`exif_transpose` turns a photograph upright, as in training; timm's transform does not.

To upload it to the Hugging Face Hub, from where timm loads it as `hf-hub:OWNER/NAME`:

```
hf upload OWNER/NAME PATH_TO_THIS_FOLDER
```
"""


def model_card(
    name: str,
    run: Run,
    history: Sequence[EpochReport],
    per_class: Sequence[ClassMetrics],
    test: Mapping[str, float],
    fitted: FittedCalibration | None = None,
) -> str:
    """The card of the release `name`; `test` holds the metrics on the test split, if scored."""
    report = best(history)
    assert report is not None  # a run that is released was evaluated
    task = MULTILABEL if run.recipe.task == MULTILABEL else MULTICLASS
    names = ", ".join(run.classes[:MAX_CLASSES])
    if len(run.classes) > MAX_CLASSES:
        names += ", …"
    return CARD.format(
        name=name,
        variant=run.recipe.variant_spec.title,
        purpose=PURPOSE[task].format(classes=len(run.classes)),
        intended_use=INTENDED_USE[task].format(names=names),
        eval_images=f"{report.eval_images:,}",
        selection=_selection(run, history),
        metrics=_metrics_table(run, report, per_class),
        test=_test_sentence(test),
        calibration=_calibration_sentence(fitted),
        per_class=_class_table(run.classes, per_class),
        training=_training_table(run, report),
        imports=_imports(task, fitted),
        probabilities=_probabilities_code(task, fitted),
        score=report.ranking_metric.name,
        epochs=_epoch_table(history, report),
    )


def _selection(run: Run, history: Sequence[EpochReport]) -> str:
    """How the released weights were chosen, as a sentence."""
    if run.averaged:
        return (
            f"The weights are the mean of {len(run.averaged)} checkpoints, chosen by their "
            "evaluations on these images."
        )
    evaluations = sum(epoch.eval_loss is not None for epoch in history)
    return f"The released epoch is the best of {evaluations} evaluations on these images."


def _metrics_table(run: Run, report: EpochReport, per_class: Sequence[ClassMetrics]) -> str:
    """Metrics of the released epoch on the eval split."""
    rows = []
    for metric in EVAL_METRICS:
        value = getattr(report, metric.key)
        if value is not None:
            rows.append((metric.label, metric.format(value, report.eval_images)))
    if per_class:
        rows.append(("macro F1", f"{macro_f1(per_class):.2%}"))
    weights = "moving average (EMA)" if report.averaged else "not averaged"
    rows.append(("weights", f"mean of {len(run.averaged)}" if run.averaged else weights))
    return _table(("metric", "value"), rows)


def _test_sentence(test: Mapping[str, float]) -> str:
    """The metrics on the test split; empty if it was not scored."""
    if not test:
        return ""
    metrics = ", ".join(
        f"{metric.name} {metric.format(test[metric.key], int(test['test_images']))}"
        for metric in TEST_METRICS
        if metric.key in test
    )
    return (
        f"\nOn the {test['test_images']:,} images of the test split, which only this model was "
        f"scored on, and only once: {metrics}.\n"
    )


def _calibration_sentence(fitted: FittedCalibration | None) -> str:
    """What calibration changed; empty if nothing was fitted."""
    if fitted is None:
        return ""
    calibration, images = fitted.calibration, f"{fitted.images:,} eval images"
    if calibration.changes_logits:
        how = (
            f"a temperature of {calibration.temperature:.3g}"
            if len(calibration.scale) == 1
            else "a scale and a bias for each class"
        )
        text = (
            f"Probabilities are calibrated by {how}, fitted on {images}. Expected calibration "
            f"error of images that the fit did not see: {fitted.ece_after:.2%}, of plain logits "
            f"{fitted.ece_before:.2%}."
        )
    else:
        text = (
            f"Probabilities are those of the plain logits: calibration on {images} did not "
            f"improve them. Expected calibration error: {fitted.ece_before:.2%}."
        )
    if fitted.f1_before is not None and fitted.f1_after is not None:
        text += (
            " `config.json` has the probability from which each class is predicted: macro F1 "
            f"{fitted.f1_after:.2%}, at 0.5 for all classes {fitted.f1_before:.2%}."
        )
    return f"\n{text}\n"


def _imports(task: str, fitted: FittedCalibration | None) -> str:
    """What `_probabilities_code` imports."""
    reads_config = task == MULTILABEL and fitted and fitted.calibration.changes_logits
    return "import json\n\nimport torch\n" if reads_config else ""


def _probabilities_code(task: str, fitted: FittedCalibration | None) -> str:
    """The line of code that makes calibrated probabilities of logits."""
    function = "sigmoid()" if task == MULTILABEL else "softmax(-1)"
    if fitted is None or not fitted.calibration.changes_logits:
        return f"probabilities = logits.{function}"
    if task == MULTILABEL:
        return (
            'calibration = json.load(open("PATH_TO_THIS_FOLDER/config.json"))["calibration"]\n'
            'scale, bias = (torch.tensor(calibration[name]) for name in ("scale", "bias"))\n'
            f"probabilities = (scale * logits + bias).{function}"
        )
    return f"probabilities = (logits / {fitted.calibration.temperature:.6g}).{function}"


def _class_table(names: Sequence[str], per_class: Sequence[ClassMetrics]) -> str:
    """Metrics of the classes with the lowest F1; empty if they were not computed."""
    if not per_class:
        return ""
    worst = sorted((metrics for metrics in per_class if metrics.support), key=lambda m: m.f1)
    columns = ["class", "images", "precision", "recall", "F1"]
    if has_average_precision(worst):
        columns.append("AP")
    rows = []
    for metrics in worst[:MAX_CLASSES]:
        shares = [metrics.precision, metrics.recall, metrics.f1]
        if metrics.ap is not None:
            shares.append(metrics.ap)
        name = _escape(names[metrics.index])
        rows.append((name, f"{metrics.support:,}", *(f"{share:.2%}" for share in shares)))
    table = _table(columns, rows)
    omitted = len(worst) - MAX_CLASSES
    if omitted > 0:
        table += f"\n\n{omitted:,} more classes, with a higher F1, are in `metrics.json`."
    return table


def _training_table(run: Run, report: EpochReport) -> str:
    """Data and settings of the run."""
    recipe, spec = run.recipe, run.spec
    rows = (
        ("data", f"`{run.data}`, fingerprint `{run.fingerprint[:16]}`"),
        ("images", f"{report.train_images:,} train, {report.eval_images:,} eval"),
        ("initial weights", "random" if run.weights == "none" else f"`{run.weights}`"),
        *([("teacher", f"`{run.teacher.uri}`")] if run.teacher else []),
        (
            "input",
            f"{spec.resolution}×{spec.resolution} px RGB, {spec.interpolation} resize, "
            f"{spec.crop_description}",
        ),
        ("released epoch", f"{report.epoch + 1} of {recipe.epochs}"),
        ("batch size", str(recipe.batch_size)),
        ("seed", str(recipe.seed)),
    )
    return _table(("setting", "value"), rows)


def _epoch_table(history: Sequence[EpochReport], report: EpochReport) -> str:
    """Metrics of every epoch that was evaluated; `report` is the released one."""
    score = report.ranking_metric
    rows = [
        (
            str(epoch.epoch + 1),
            TRAIN_LOSS.format(epoch.train_loss),
            EVAL_LOSS.format(epoch.eval_loss),
            score.format(epoch.score),
        )
        for epoch in history
        if epoch.eval_loss is not None and epoch.score is not None
    ]
    return _table(("epoch", TRAIN_LOSS.label, EVAL_LOSS.label, score.label), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escape(name: str) -> str:
    """A class name as the text of a table cell."""
    return " ".join(name.split()).replace("|", "\\|")
