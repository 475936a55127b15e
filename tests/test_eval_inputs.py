"""A release's inputs: every image once, by its own preprocessing, unreadable ones named."""

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from support.datasets import copied

from effnet_ray.data import manifest as manifests
from effnet_ray.data.decode import decode
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.data.views import eval_view
from effnet_ray.errors import DatasetError
from effnet_ray.inference.eval_inputs import EvalInputs, match_classes, preprocess
from effnet_ray.variants import InputSpec

SPEC = InputSpec(resolution=48, crop=0.875)


def split(data: Path, *, thumbnails: bool = False, name: str = "eval") -> EvalInputs:
    return EvalInputs(manifests.load(str(data)), str(data), name, SPEC, (0, 1, 2), thumbnails)


@given(st.lists(st.lists(st.integers(1, 150), min_size=1), min_size=1), st.integers(1, 64))
def test_pieces_hold_every_row_once(shards: list[list[int]], most: int) -> None:
    made = tuple(Shard(path=f"{at}", row_groups=tuple(rows), bytes=1, sha256="")
                 for at, rows in enumerate(shards))  # fmt: skip
    manifest = Manifest(classes=("a", "b"), splits={"eval": made})
    groups = list(EvalInputs(manifest, "", "eval", SPEC, (0, 1)).read_units(most))
    flat = [rows for shard in shards for rows in shard]
    result = [(p.group, row) for pieces in groups for p in pieces for row in range(p.first, p.end)]
    assert result == [(group, row) for group, rows in enumerate(flat) for row in range(rows)]
    assert all(len({p.group for p in pieces}) == 1 for pieces in groups)  # so read once
    assert all(p.end - p.first <= most for pieces in groups for p in pieces)


def test_an_image_is_shown_as_the_release_was_judged(packed: Path) -> None:
    shown = split(packed, thumbnails=True)
    (pieces,) = shown.read_units(4)
    rows = pq.read_table(packed / "eval/00000.parquet").to_pylist()
    at = 0
    for views, about in preprocess(shown, pieces):
        for slot, view in enumerate(views):
            row, at = rows[at], at + 1
            assert np.array_equal(view, eval_view(decode(row["image"]["bytes"]), SPEC))
            output = (about["image"][slot], about["label"][slot], about["path"][slot])
            assert output == (row["id"], row["label"], row["image"]["path"])
            small = Image.open(io.BytesIO(base64.b64decode(about["thumbnail"][slot])))
            assert small.format == "JPEG" and max(small.size) == 120  # smaller ones stay
    assert at == 6


def test_an_image_that_is_not_what_was_packed_is_named(packed: Path, tmp_path: Path) -> None:
    data = copied(packed, tmp_path / "data")
    shard = data / "eval/00000.parquet"
    row = pq.read_table(shard).to_pylist()[2]
    raw = bytearray(shard.read_bytes())
    raw[raw.index(row["image"]["bytes"]) + 60] ^= 1
    shard.write_bytes(raw)
    shown = split(data)
    (pieces,) = shown.read_units(64)
    ((views, about),) = preprocess(shown, pieces)
    assert [bool(why) for why in about["error"]] == [False, False, True, False, False, False]
    assert (
        "do not match the SHA-256" in about["error"][2]
        and about["path"][2] == row["image"]["path"]
    )
    assert not views[2].any() and about["image"][2] == row["id"]


def test_classes_are_matched_by_name() -> None:
    assert match_classes(("a", "b", "c"), ("c", "a", "b"), "pets@v1") == (2, 0, 1)
    assert match_classes(("a", "b", "c"), ("b",), "pets@v1") == (1,)
    with pytest.raises(DatasetError, match=r"2 classes that pets@v1 does not have \('cat', 'x'\)"):
        match_classes(("a", "b"), ("cat", "a", "x"), "pets@v1")
