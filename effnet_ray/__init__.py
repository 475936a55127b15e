"""Fine-tune EfficientNet B0–B7 on a Ray cluster, from images in object storage to a release.

The straight line as a Python API: `pack` → `finetune` or `tune` → `ModelStore`. Importing this
package loads neither Ray nor torch; the names below load their modules when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe

if TYPE_CHECKING:
    from effnet_ray.packing.options import Packing
    from effnet_ray.packing.pack import pack
    from effnet_ray.release.store import ModelStore
    from effnet_ray.sweep.tune import tune
    from effnet_ray.train.finetune import finetune

__version__ = "0.1.0"
__all__ = ["ModelStore", "Packing", "Placement", "Recipe", "finetune", "pack", "tune"]

_HOMES = {
    "ModelStore": "effnet_ray.release.store",
    "Packing": "effnet_ray.packing.options",
    "finetune": "effnet_ray.train.finetune",
    "pack": "effnet_ray.packing.pack",
    "tune": "effnet_ray.sweep.tune",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'effnet_ray' has no attribute {name!r}")
