"""Checks what `ray job submit --working-dir .` uploads: its size, and secrets in it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging  # what `ray job submit` packs with

from effnet_ray.preflight.findings import Finding

SECRET_FILES = (
    ".env", ".env.*", "*.env", ".aws", ".ssh", ".kube", ".netrc", ".git-credentials", "*.pem",
    "*.key", "id_rsa", "id_dsa", "id_ed25519", "id_ecdsa", "credentials", "credentials.json",
    "auth_token",
)  # fmt: skip
"""Names of files and folders that usually hold credentials."""
SAMPLE_FILES = ("*.example", "*.sample", "*.template")
"""Templates without credentials."""
LARGE_FILES = ("*.parquet", "*.safetensors", "checkpoints")
"""Data, weights and runs: a job reads them from storage, not from the working dir."""
MAX_NAMES = 3
"""Files and folders that a finding names, so that it stays about a line long."""


def check_working_dir(folder: Path, *, submits: bool) -> Iterator[Finding]:
    """Size and contents of what Ray would upload: all but .gitignore's and .rayignore's files.

    `submits`: the folder will be submitted; if not, problems are only warnings.
    """
    files = uploaded_files(folder)
    size, max_size = sum(files.values()), packaging.GCS_STORAGE_MAX_SIZE
    summary = f"{len(files):,} files, {size / 1e6:,.1f} MB of at most {max_size / 1e6:,.0f} MB"
    ignore = "add them to .rayignore"
    large = _matching(files, LARGE_FILES)
    yield Finding(
        check="working dir",
        ok=size < max_size or not submits,
        found=f"{summary}; {large}" if large else summary,
        do=ignore if large or size >= max_size else "",
    )
    secret = _matching(files, SECRET_FILES)
    yield Finding(
        check="working dir secrets",
        ok=not (secret and submits),
        found=secret or "none",
        do=f"{ignore}: everyone with access to the cluster can read them" if secret else "",
    )


def uploaded_files(folder: Path) -> dict[str, int]:
    """Files that Ray would upload: path relative to the folder → bytes."""
    files: dict[str, int] = {}

    def handle(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    ignores_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1"
    packaging._dir_travel(
        folder,
        [excludes],
        handle,
        include_gitignore=not ignores_gitignore,
        logger=logging.getLogger(__name__),
    )
    return files


def _matching(files: dict[str, int], patterns: tuple[str, ...]) -> str:
    """The first few files or folders that match a pattern, as text."""
    hits: dict[str, None] = {}
    for name in files:
        path = Path(name)
        for part in [path, *path.parents][:-1]:
            is_sample = any(part.match(pattern) for pattern in SAMPLE_FILES)
            if not is_sample and any(part.match(pattern) for pattern in patterns):
                hits[part.as_posix()] = None
    top = [hit for hit in hits if not any(str(up) in hits for up in Path(hit).parents)]
    more = f" and {len(top) - MAX_NAMES} more" if len(top) > MAX_NAMES else ""
    return ", ".join(top[:MAX_NAMES]) + more
