"""Names of every file and folder of a release and of a model store.

STORE/NAME/vNNNN/                  one release
    model.safetensors              weights, under timm's parameter names
    config.json                    timm's hub format: architecture, class names, preprocessing
    recipe.json                    the resolved recipe
    references.safetensors         features of eval images, which tell unknown pictures
    metrics.json                   metrics of every epoch
    curves.png                     plot of these metrics
    README.md                      model card
    release.json                   the release's record: SHA-256 and size of each file above,
                                   provenance, its own SHA-256; written last
STORE/NAME/claims/vNNNN.json       the future release.json; written when the number is claimed
STORE/NAME/tombstones/vNNNN.json   marks a version that is deleted or was abandoned
STORE/NAME/aliases/ALIAS.json      history of an alias
STORE/NAME/staging/<16 hex>/       files of a release that is being published
"""

import re

from effnet_ray.storage.names import NAME

WEIGHTS = "model.safetensors"
"""Weights under timm's parameter names: in a release, on the Hugging Face hub, in a checkpoint."""
CONFIG = "config.json"
RECIPE = "recipe.json"
METRICS = "metrics.json"
REFERENCES = "references.safetensors"
"""Missing in releases of version 0.1, and with few eval images."""
CURVES = "curves.png"
CARD = "README.md"
RECORD = "release.json"

CLAIMS, TOMBSTONES, ALIASES, STAGING = "claims", "tombstones", "aliases", "staging"

_VERSION, MAX_VERSION = r"v(\d{4,9})", 999_999_999
_STAGED = rf"{STAGING}/[0-9a-f]{{16}}"

RECORD_PATH = re.compile(rf"{_VERSION}/{re.escape(RECORD)}")
CLAIM_PATH = re.compile(rf"{CLAIMS}/{_VERSION}\.json")
TOMBSTONE_PATH = re.compile(rf"{TOMBSTONES}/{_VERSION}\.json")
ALIAS_PATH = re.compile(rf"{ALIASES}/([^/.][^/]*)\.json")
"""Paths below a model's folder; group 1 is the version's number or the alias."""
IN_VERSION_FOLDER = re.compile(rf"{_VERSION}(?=/)")
IN_STAGING_FOLDER = re.compile(rf"{_STAGED}(?=/)")
"""The start of a path in such a folder."""
UPLOAD_PATH = re.compile(rf"{NAME.pattern}/({_VERSION}|{_STAGED})/{NAME.pattern}")
"""Paths below a store to which publishers upload."""


def version_folder(version: int) -> str:
    """Path of a release below its model's folder."""
    return f"v{version:04d}"


def claim_path(version: int) -> str:
    """Path of a version's claim below its model's folder."""
    return f"{CLAIMS}/v{version:04d}.json"


def tombstone_path(version: int) -> str:
    """Path of a version's tombstone below its model's folder."""
    return f"{TOMBSTONES}/v{version:04d}.json"


def alias_path(alias: str) -> str:
    """Path of an alias's history below its model's folder."""
    return f"{ALIASES}/{alias}.json"
