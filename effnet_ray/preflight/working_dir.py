"""What `ray job submit --working-dir .` carries to the cluster, where every job can read it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging  # what `ray job submit` packs with

from effnet_ray.preflight.findings import Finding

SECRET = (
    ".env", ".env.*", "*.env", ".aws", ".ssh", ".kube", ".netrc", ".git-credentials", "*.pem",
    "*.key", "id_rsa", "id_dsa", "id_ed25519", "id_ecdsa", "credentials", "credentials.json",
    "auth_token",
)  # fmt: skip
"""Where people keep keys."""
SHOWN = ("*.example", "*.sample", "*.template")
"""What is there to be seen."""
HEAVY = ("*.parquet", "*.safetensors", "checkpoints")
"""What a job finds elsewhere: data, weights and runs."""
NAMED = 3


def working_dir(folder: Path, *, submits: bool) -> Iterator[Finding]:
    """Size and content of what is not in .gitignore or .rayignore, as Ray would pack it.

    `submits`: whether it is to be submitted; else what is wrong is only remarked on.
    """
    files = uploaded_files(folder)
    size, most = sum(files.values()), packaging.GCS_STORAGE_MAX_SIZE
    found = f"{len(files):,} files, {size / 1e6:,.1f} MB of at most {most / 1e6:,.0f}"
    ignore = "name them in .rayignore"
    heavy = _matching(files, HEAVY)
    yield Finding(
        check="working dir",
        ok=size < most or not submits,
        found=f"{found}; {heavy}" if heavy else found,
        do=ignore if heavy or size >= most else "",
    )
    secret = _matching(files, SECRET)
    yield Finding(
        check="no secrets in it",
        ok=not (secret and submits),
        found=secret or "none",
        do=f"{ignore}; whoever may use the cluster can read them there" if secret else "",
    )


def uploaded_files(folder: Path) -> dict[str, int]:
    """Files that Ray would pack, relative to the folder: bytes of each."""
    found: dict[str, int] = {}

    def handle(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    everything = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1"
    packaging._dir_travel(
        folder,
        [excludes],
        handle,
        include_gitignore=not everything,
        logger=logging.getLogger(__name__),
    )
    return found


def _matching(files: dict[str, int], patterns: tuple[str, ...]) -> str:
    """The first few files or folders of one of these names."""
    hits: dict[str, None] = {}
    for name in files:
        path = Path(name)
        for part in [path, *path.parents][:-1]:
            shown = any(part.match(pattern) for pattern in SHOWN)
            if not shown and any(part.match(pattern) for pattern in patterns):
                hits[part.as_posix()] = None
    top = [hit for hit in hits if not any(str(up) in hits for up in Path(hit).parents)]
    more = f" and {len(top) - NAMED} more" if len(top) > NAMED else ""
    return ", ".join(top[:NAMED]) + more
