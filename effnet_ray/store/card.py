"""The model card: README.md of a release, written for a reader."""

from effnet_ray.recipe import Recipe
from effnet_ray.train.record import Result, Run
from effnet_ray.train.reports import EpochReport

CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, efficientnet]
---
# {name}

EfficientNet-{variant} fine-tuned by [effnet_ray](https://pypi.org/project/effnet-ray/) to tell
{classes} classes apart: {some}.

| | |
|---|---|
| eval top-1 | {top1:.2%} of {images} images that training never saw |
| eval top-5 | {top5:.2%} |
| eval loss | {loss:.4f} |
| started from | {weights} |
| input | {size}×{size} px RGB, {interpolation} resize, centre crop {crop:g} |
| trained | epoch {epoch} of {epochs}, batch {batch}, seed {seed} |
| data | fingerprint `{fingerprint}` |

Load it with timm alone, from a local copy of this folder:

```python
import timm
model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = model.pretrained_cfg["label_names"]
```

`recipe.json` holds everything that decided these numbers, `metrics.json` every epoch,
`release.json` the SHA-256 of each file.
"""


def card(run: Run, result: Result, winner: EpochReport) -> str:
    """The card of a run's release."""
    recipe: Recipe = run.recipe
    names = list(run.classes)
    some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return CARD.format(
        name=run.name,
        variant=recipe.variant.upper(),
        classes=len(names),
        some=some,
        top1=result.eval_top1,
        top5=result.eval_top5,
        loss=result.eval_loss,
        images=f"{winner.eval_images:,}",
        weights="scratch" if run.weights == "none" else f"`{run.weights}`",
        size=run.spec.resolution,
        interpolation=run.spec.interpolation,
        crop=run.spec.crop,
        epoch=winner.epoch + 1,
        epochs=recipe.epochs,
        batch=recipe.batch_size,
        seed=recipe.seed,
        fingerprint=run.fingerprint[:16],
    )
