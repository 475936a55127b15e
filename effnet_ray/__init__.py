"""Fine-tune EfficientNets on a Ray cluster, from images in object storage to a release.

The Python API: `pack` → `finetune` or `tune` → `ModelStore`. Importing this package imports
neither Ray nor torch; each name below imports its module when it is first used.
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

_MODULES = {
    "ModelStore": "effnet_ray.release.store",
    "Packing": "effnet_ray.packing.options",
    "finetune": "effnet_ray.train.finetune",
    "pack": "effnet_ray.packing.pack",
    "tune": "effnet_ray.sweep.tune",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'effnet_ray' has no attribute {name!r}")
