"""Provenance of a release: what release.json contains besides names, digests and scores."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import effnet_ray
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Result, Run

LIBRARIES = ("torch", "timm", "ray")
GIT_TIMEOUT_S = 10
"""git takes less than a second on a local disk. If a network disk hangs, the release records no
commit."""


def provenance(
    run: Run,
    result: Result,
    step: int,
    history: Sequence[EpochReport],
    found_by: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The provenance of a release of the run's checkpoint at `step`. Called on the driver."""
    return {
        "variant": run.recipe.variant,
        "classes": len(run.classes),
        "run": result.run_uri,
        "step": step,
        "seed": run.recipe.seed,
        "data": run.data,
        "fingerprint": run.fingerprint,
        "weights": run.weights,
        "weights_sha256": run.weights_sha256,
        **_teacher(run),
        **({"averaged": list(run.averaged)} if run.averaged else {}),
        "effnet_ray": effnet_ray.__version__,
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
        **git_commit(),
        "cost": _cost(result, history),
        **({"found_by": dict(found_by)} if found_by else {}),
    }


def _teacher(run: Run) -> dict[str, Any]:
    """The release that the run learned from; empty without a teacher."""
    teacher = run.teacher
    if teacher is None:
        return {}
    return {"teacher": {"uri": teacher.uri, "weights_sha256": teacher.weights_sha256}}


def _cost(result: Result, history: Sequence[EpochReport]) -> dict[str, float]:
    """What the run cost.

    `device_seconds` (of the workers, without computing features and scoring) and `train_images`
    cover all epochs; `seconds` and `train_images_per_s` cover the call that finished the run.
    """
    return {
        **({"device_seconds": result.device_seconds} if result.device_seconds else {}),
        "seconds": round(result.seconds, 1),
        "train_images": sum(report.train_images for report in history),
        "train_images_per_s": round(result.train_images_per_s, 1),
    }


def git_commit() -> dict[str, Any]:
    """The working folder's commit and whether files were changed; empty outside a repository."""
    head = _git("rev-parse", "HEAD")
    if not head:
        return {}
    return {"commit": head, "changed": bool(_git("status", "--porcelain", "-uno"))}


def _git(*arguments: str) -> str:
    """The output of a git command; empty if it fails."""
    try:
        process = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout.strip()
