"""Damage in storage is detected on read: read again, then quarantined or a clear error."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import opened

from effnet_ray.data import parquet_reads, row_group
from effnet_ray.data.chunks import Block, ChunkTask, Dataset, load_chunks
from effnet_ray.data.row_group import ImageRecord, RowGroup
from effnet_ray.errors import DatasetError, ImageError

FLIPS = 1000
TRAIN = ChunkTask("train", 0, 0, 0, 0, view=0)


@pytest.fixture
def dataset(packed: Path, tmp_path: Path) -> Dataset:
    """A copy of the packed photographs that may be damaged; one lane of one chunk."""
    data = tmp_path / "data"
    shutil.copytree(packed, data)
    return opened(data)


def shard(dataset: Dataset) -> Path:
    return Path(dataset.data) / dataset.manifest.splits["train"][0].path


def flipped(raw: bytes, bit: int) -> bytes:
    data = bytearray(raw)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def records(dataset: Dataset) -> list[ImageRecord]:
    """All rows of the train split as the data path reads them."""
    parquet_reads.forget_footers()
    group = RowGroup(
        dataset.manifest, dataset.data, "train", 0, limited=dataset.recipe.limit is not None
    )
    return [group.record(row) for row in range(dataset.plan.images)]


def chunk(dataset: Dataset) -> Block:
    parquet_reads.forget_footers()
    (block,) = load_chunks(dataset, [TRAIN])
    return block


def test_of_a_thousand_flipped_bits_none_passes_unseen(dataset: Dataset) -> None:
    """Whatever is delivered as packed is what was packed: id, label, path, digest and bytes."""
    file, random = shard(dataset), np.random.default_rng(0)
    raw, whole = file.read_bytes(), records(dataset)
    named = refused = harmless = 0
    for bit in random.integers(8 * len(raw), size=FLIPS).tolist():
        file.write_bytes(flipped(raw, bit))
        try:
            result = records(dataset)
        except DatasetError as error:
            assert str(file) in str(error)
            refused += 1
            continue
        bad = [row for row, record in enumerate(result) if isinstance(record.data, ImageError)]
        for row, (before, after) in enumerate(zip(whole, result, strict=True)):
            assert replace(before, data=b"") == replace(after, data=b"")
            assert (before.data == after.data) == (row not in bad)
        named, harmless = named + bool(bad), harmless + (not bad)
    print(f"{named} quarantined, {refused} refused, {harmless} without effect")
    assert named > 0.9 * FLIPS and harmless < 0.05 * FLIPS


@pytest.mark.parametrize("part", ["first", "last"])
def test_flipped_bits_outside_the_images_do_not_pass_unseen(dataset: Dataset, part: str) -> None:
    """Every bit of the first and the last 2 kB would take long: every seventh."""
    file = shard(dataset)
    raw, whole = file.read_bytes(), records(dataset)
    bits = 8 * len(raw)
    for bit in range(0, 16_384, 23) if part == "first" else range(bits - 16_384, bits, 23):
        file.write_bytes(flipped(raw, bit))
        try:
            result = records(dataset)
        except DatasetError as error:
            assert str(file) in str(error)
            continue
        for before, after in zip(whole, result, strict=True):
            assert before == after or isinstance(after.data, ImageError)
            assert (before.id, before.label) == (after.id, after.label)


def middle_of_an_image(raw: bytes, dataset: Dataset) -> tuple[int, str]:
    """A bit inside some image's bytes, and the image's path."""
    record = records(dataset)[5]
    assert isinstance(record.data, bytes)
    return 8 * (raw.index(record.data) + len(record.data) // 2), record.path


def test_a_damaged_image_is_quarantined_by_name_and_the_others_are_read(dataset: Dataset) -> None:
    file, whole = shard(dataset), chunk(dataset)
    raw = file.read_bytes()
    bit, path = middle_of_an_image(raw, dataset)
    file.write_bytes(flipped(raw, bit))
    block = chunk(dataset)
    (slot,) = np.flatnonzero(block["bad"] != "")
    bad = json.loads(block["bad"][slot])
    assert (
        bad["path"] == path
        and "do not match the SHA-256" in bad["reason"]
        and len(bad["digest"]) == 64
    )
    others = np.arange(len(block["bad"])) != slot
    assert np.array_equal(block["image"][others], whole["image"][others])
    assert np.array_equal(block["id"], whole["id"])
    assert np.array_equal(block["label"], whole["label"])


@pytest.mark.parametrize("verified", [True, False])
def test_a_bit_flipped_on_the_way_is_healed_by_a_second_read(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, verified: bool
) -> None:
    """Found by a page's checksum, or where there is none by the image's digest."""
    file, whole = shard(dataset), chunk(dataset)
    raw, reads, read = file.read_bytes(), [], row_group.read_row_groups
    bit, _ = middle_of_an_image(raw, dataset)

    def flips_once(*arguments: Any, verify: bool, columns: list[str] | None = None) -> pa.Table:
        reads.append(verify)
        file.write_bytes(flipped(raw, bit) if len(reads) == 1 else raw)
        return read(*arguments, verify=verify and verified, columns=columns)

    monkeypatch.setattr(row_group, "read_row_groups", flips_once)
    block = chunk(dataset)
    assert len(reads) == 2
    assert not any(block["bad"])
    assert np.array_equal(block["image"], whole["image"])


def rewritten(dataset: Dataset, change: Callable[[pa.Table], pa.Table]) -> None:
    """The shard with other content, whole and with true checksums."""
    table = change(pq.read_table(shard(dataset)))
    pq.write_table(table, shard(dataset), write_page_checksum=True)


@pytest.mark.parametrize("rows", [17, 19])
def test_missing_and_extra_rows_are_refused_with_both_counts(dataset: Dataset, rows: int) -> None:
    rewritten(dataset, lambda table: pa.concat_tables([table, table]).slice(0, rows))
    with pytest.raises(DatasetError, match=rf"has {rows} rows in row group 0.* lists 18"):
        chunk(dataset)


def test_an_extra_row_group_is_refused(dataset: Dataset) -> None:
    table = pq.read_table(shard(dataset))
    pq.write_table(pa.concat_tables([table, table]), shard(dataset), row_group_size=18)
    with pytest.raises(DatasetError, match="has 2 row groups, the manifest lists 1"):
        chunk(dataset)


def test_a_limit_reads_the_first_rows_of_a_larger_row_group(dataset: Dataset) -> None:
    first = {record.id for record in records(dataset)[:7]}
    assert set(chunk(opened(Path(dataset.data), limit=7))["id"]) == first


def test_another_type_of_a_column_is_refused(dataset: Dataset) -> None:
    rewritten(dataset, lambda t: t.set_column(2, "label", t["label"].cast(pa.int32())))
    with pytest.raises(DatasetError, match="unexpected types"):
        chunk(dataset)


def test_a_shard_that_is_gone_is_refused_by_name(dataset: Dataset) -> None:
    shard(dataset).unlink()
    with pytest.raises(DatasetError, match=r"00000\.parquet cannot be read, even on"):
        chunk(dataset)
