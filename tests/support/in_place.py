"""Shared by tests: in_place, shards."""

from pathlib import Path
from typing import Any

import pytest

from effnet_ray.data.manifest import Manifest
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from support.sources import write_hugging_face


@pytest.fixture
def shards(photographs: Path, tmp_path: Path) -> Path:
    """The photographs as `datasets` writes them, the classes mixed."""
    import random

    from test_sources import files as every

    folder = tmp_path / "mixed"
    found = every(photographs)
    random.Random(0).shuffle(found)
    for number, path in enumerate(found):
        target = folder / path.parent.name / f"{number:02d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "shards").mkdir()
    write_hugging_face(folder, tmp_path / "shards", splits=("train", "validation"))
    return tmp_path / "shards"


def in_place(folder: Path, **more: Any) -> Manifest:
    return pack(str(folder), str(folder), Packing(in_place=True, **more))
