"""Packing shards of Hugging Face's layout in place."""

from pathlib import Path
from typing import Any

from effnet_ray.data.manifest import Manifest
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack


def in_place(folder: Path, **more: Any) -> Manifest:
    return pack(str(folder), str(folder), Packing(in_place=True, **more))
