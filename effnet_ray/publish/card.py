"""The model card: README.md of a release, written for a reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effnet_ray.recipe import Recipe
from effnet_ray.tasks import MULTILABEL
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.per_class import ClassMetrics, has_average_precision, macro_f1
from effnet_ray.train.run_record import Run

CLASSES_NAMED = 20
"""More would be no reading; metrics.json has all."""

CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, efficientnet]
---
# {name}

An EfficientNet-{variant} that {does}, fine-tuned by
[effnet_ray](https://pypi.org/project/effnet-ray/).

## What it is for

{meant}

## Numbers

On {images} images that training never saw; by them the best of {evaluated} evaluations was chosen:

| | |
|---|---|
{map}| eval top-1 | {top1:.2%} |
| eval top-5 | {top5:.2%} |
| eval loss | {loss:.4f} |
{f1}| weights | {averaged} |
{test}
{per_class}

## Data and training

| | |
|---|---|
| data | `{data}`, fingerprint `{fingerprint}` |
| images | {train_images} to train on, {images} to evaluate |
| started from | {weights} |
| input | {size}×{size} px RGB, {interpolation} resize, centre crop {crop:g} |
| trained | epoch {epoch} of {epochs}, batch {batch}, seed {seed} |

![Loss and top-1 of each epoch](curves.png)

{curve}

`recipe.json` holds everything that decided these numbers, `metrics.json` every epoch,
`release.json` the SHA-256 of each file, versions, and what the run took.

## Use

With timm alone, from a local copy of this folder:

```python
import timm
model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = model.pretrained_cfg["label_names"]
```

To the Hugging Face hub, where timm finds it as `hf-hub:OWNER/NAME`:

```
hf upload OWNER/NAME PATH_TO_THIS_FOLDER
```
"""


@dataclass(frozen=True)
class Purpose:
    """What a release is for, in words."""

    does: str
    meant: str


ONE = Purpose(
    "tells {classes} classes of images apart",
    """\
Images like those it was trained on, one label each: {some}. An image of anything else gets one of
these labels too, so a probability is no proof that the image shows any of them.""",
)
SEVERAL = Purpose(
    "says which of {classes} classes an image shows",
    """\
Images like those it was trained on, which may show any number of: {some}. Its outputs are one
logit for each, a sigmoid of which is the probability of that class by itself.""",
)


def model_card(
    name: str,
    run: Run,
    history: Sequence[EpochReport],
    per_class: Sequence[ClassMetrics],
    test: Mapping[str, float],
) -> str:
    """The card of a run's release, called `name`; `test` are the test split's figures, if any."""
    recipe: Recipe = run.recipe
    winner = best(history)
    assert winner is not None  # what is released was evaluated
    names, several = list(run.classes), recipe.task == MULTILABEL
    some = ", ".join(names[:CLASSES_NAMED]) + (", …" if len(names) > CLASSES_NAMED else "")
    return CARD.format(
        name=name,
        variant=recipe.variant.upper(),
        does=(SEVERAL if several else ONE).does.format(classes=len(names)),
        meant=(SEVERAL if several else ONE).meant.format(some=some),
        map=f"| eval mAP | {winner.eval_map:.2%} |\n" if winner.eval_map is not None else "",
        top1=winner.eval_top1,
        top5=winner.eval_top5,
        loss=winner.eval_loss,
        f1=f"| mean F1 of classes | {macro_f1(per_class):.2%} |\n" if per_class else "",
        test=_test(test),
        per_class=_per_class(names, per_class),
        images=f"{winner.eval_images:,}",
        evaluated=sum(report.eval_loss is not None for report in history),
        averaged="their moving average" if winner.averaged else "as trained",
        data=run.data,
        train_images=f"{winner.train_images:,}",
        weights="scratch" if run.weights == "none" else f"`{run.weights}`",
        size=run.spec.resolution,
        interpolation=run.spec.interpolation,
        crop=run.spec.crop,
        epoch=winner.epoch + 1,
        epochs=recipe.epochs,
        batch=recipe.batch_size,
        seed=recipe.seed,
        fingerprint=run.fingerprint[:16],
        curve=_curve(history),
    )


def _test(figures: Mapping[str, float]) -> str:
    """What nothing was chosen by."""
    if not figures:
        return ""
    mean = f"mAP {figures['test_map']:.2%}, " if "test_map" in figures else ""
    return (
        f"\nOn {figures['test_images']:,} images of a test split, scored once and by this model "
        f"alone: {mean}top-1 {figures['test_top1']:.2%}, top-5 {figures['test_top5']:.2%}, "
        f"loss {figures['test_loss']:.4f}.\n"
    )


def _per_class(names: Sequence[str], found: Sequence[ClassMetrics]) -> str:
    """The classes of the lowest F1 first; nothing where they were not counted."""
    if not found:
        return ""
    worst = sorted((each for each in found if each.support), key=lambda each: each.f1)
    titles = [
        "class",
        "images",
        "precision",
        "recall",
        "F1",
        *(["AP"] if has_average_precision(worst) else []),
    ]
    rows = [_row(titles), _row(["---"] * len(titles))]
    for each in worst[:CLASSES_NAMED]:
        ap = [each.ap] if each.ap is not None else []
        shares = [f"{share:.2%}" for share in (each.precision, each.recall, each.f1, *ap)]
        rows.append(_row([_cell(names[each.index]), f"{each.support:,}", *shares]))
    more = len(worst) - CLASSES_NAMED
    left_out = f"\n\n… and {more:,} with a higher F1, in `metrics.json`." if more > 0 else ""
    return "\n".join(rows) + left_out


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str) -> str:
    """A class name as text of a table."""
    return " ".join(name.split()).replace("|", "\\|")


def _curve(history: Sequence[EpochReport]) -> str:
    """A row for each epoch that was evaluated."""
    score = "top-1" if all(report.eval_map is None for report in history) else "mAP"
    rows = [f"| epoch | train loss | eval loss | eval {score} |", "|---|---|---|---|"]
    for report in history:
        if report.eval_loss is not None and report.score is not None:
            figures = f"{report.train_loss:.4f} | {report.eval_loss:.4f} | {report.score:.2%}"
            rows.append(f"| {report.epoch + 1} | {figures} |")
    return "\n".join(rows)
