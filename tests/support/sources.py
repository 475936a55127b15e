"""Shared by tests: files, write_hugging_face."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file())


def write_hugging_face(
    images: Path, out: Path, *, splits: tuple[str, ...] = ("train",), group: int = 5
) -> str:
    """As `datasets` writes it: ClassLabel numbers, names in the metadata."""
    classes = sorted({f.parent.name for f in files(images)})
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    (out / "data").mkdir()
    for index, split in enumerate(splits):
        mine = files(images)[index :: len(splits)]
        rows = {
            "image": [{"bytes": f.read_bytes(), "path": f.name} for f in mine],
            "label": [classes.index(f.parent.name) for f in mine],
            "camera": [f.stem for f in mine],
        }
        table = pa.table(rows).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        name = out / f"data/{split}-00000-of-00001.parquet"
        pq.write_table(table, name, row_group_size=group)
    return str(out)


@pytest.fixture
def images(photographs: Path, tmp_path: Path) -> Path:
    """The photographs, to write beside."""
    for path in files(photographs):
        target = tmp_path / "images" / path.relative_to(photographs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"
