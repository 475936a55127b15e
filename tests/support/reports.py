"""Shared by tests: report."""

from effnet_ray.train.epoch_report import EpochReport


def report(epoch: int, top1: float | None) -> EpochReport:
    return EpochReport(
        epoch=epoch, step=epoch + 1, train_loss=1, train_top1=0, train_images=1,
        eval_loss=None if top1 is None else 1, eval_top1=top1, eval_top5=1, eval_images=1,
        quarantined=0,
    )  # fmt: skip
