"""Where a release comes from: what release.json says beside names, digests and figures."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import effnet_ray
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Result, Run

LIBRARIES = ("torch", "timm", "ray")
GIT_S = 10
"""Seconds that git may take."""


def provenance(
    run: Run,
    result: Result,
    step: int,
    history: Sequence[EpochReport],
    found_by: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All of it, of a run whose checkpoint at `step` is released. Called on the driver."""
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
        "effnet_ray": effnet_ray.__version__,
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
        **git_commit(),
        "cost": _cost(result, history),
        **({"found_by": dict(found_by)} if found_by else {}),
    }


def _cost(result: Result, history: Sequence[EpochReport]) -> dict[str, float]:
    """What the run took.

    `device_seconds` (of the workers, computing features and scoring left out) and images are of
    all its epochs, `seconds` and images per second of the call that ended it.
    """
    return {
        **({"device_seconds": result.device_seconds} if result.device_seconds else {}),
        "seconds": round(result.seconds, 1),
        "train_images": sum(report.train_images for report in history),
        "train_images_per_s": round(result.train_images_per_s, 1),
    }


def git_commit() -> dict[str, Any]:
    """The working folder's git commit, and whether files differ from it; nothing without git."""
    head = _git("rev-parse", "HEAD")
    if not head:
        return {}
    return {"commit": head, "changed": bool(_git("status", "--porcelain", "-uno"))}


def _git(*arguments: str) -> str:
    try:
        asked = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()
