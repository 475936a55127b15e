"""Finished runs and epochs, made without training."""

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Result, Run
from support.loop_worker import CLASSES, settled

RECIPE = settled(ema_decay=0.9)


def run() -> Run:
    return Run(
        name="birds", recipe=RECIPE, spec=RECIPE.variant_spec.input_spec(),
        classes=tuple(map(str, range(CLASSES))), data="s3://bucket/data", fingerprint="f" * 64,
        weights="none", weights_sha256="", weights_head=1000,
    )  # fmt: skip


def result(uri: str, found: str) -> Result:
    return Result(
        run="birds", run_uri=uri, checkpoint=found, eval_top1=0.75, eval_top5=1.0, eval_loss=1.0,
        epochs=1, steps=1, resumed_from_step=0, train_images_per_s=1.0, seconds=1.0, quarantined=0,
    )  # fmt: skip


def report(epoch: int, top1: float | None) -> EpochReport:
    return EpochReport(
        epoch=epoch, step=epoch + 1, train_loss=1, train_top1=0, train_images=1,
        eval_loss=None if top1 is None else 1, eval_top1=top1, eval_top5=1, eval_images=1,
        quarantined=0,
    )  # fmt: skip
