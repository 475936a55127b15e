"""Shared by tests: files, write_hugging_face."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


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
