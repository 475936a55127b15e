"""Images in class folders → Parquet shards and, last of all, manifest.json.

Packing shuffles globally, so that every row group is a fair sample of the classes, and is
deterministic: the same source and seed give the same ids, shards and fingerprint, for any
parallelism and destination. Shards follow the Hugging Face image layout: `image` (struct of
`bytes` and `path`), `label`, beside our `id` and the SHA-256 `digest` of the bytes.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.images import SUFFIXES, decode
from effnet_ray.data.manifest import Manifest, Shard
from effnet_ray.errors import DatasetError, ImageError, StorageError

SHARD_BYTES = 128 * 1024**2
ROW_GROUP_IMAGES = 64
ROW_GROUP_BYTES = 16 * 1024**2
"""A row group is the unit of a range read: ≤ 64 images and about ≤ 16 MB."""

READERS = 8
"""Parallel reads of source images per shard; decoders and S3 clients release the GIL."""

QUARANTINE = "quarantine.parquet"


@dataclass(frozen=True, slots=True)
class Source:
    """One image file of the source."""

    id: int
    """Its place among all source files, sorted by path."""
    path: str
    """Relative to the source."""
    label: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of one source file: its bytes, or the reason it is unusable."""

    source: Source
    data: bytes
    digest: str
    reason: str


Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


def pack(
    source: str,
    out: str,
    *,
    eval_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Pack a folder of class folders (local or s3://) into shards and a manifest under `out`.

    Splits are stratified by class. Unreadable files are left out and named, with the reason, in
    `out`/quarantine.parquet. Packing the same source again is reported, not redone. Raises
    DatasetError for no images, one class, a class too small to split, or another data set at
    `out`; StorageError where a URI cannot be used.
    """
    source, out = storage.absolute(source), storage.absolute(out)
    _check_fractions(eval_fraction, test_fraction)
    classes, files = _listing(source)
    made_from: dict[str, str | int | float] = {
        "source": source,
        "listing": _listing_digest(files),
        "seed": seed,
        "eval_fraction": eval_fraction,
        "test_fraction": test_fraction,
    }
    done = _already_packed(out, made_from)
    if done:
        return done
    splits = _split(files, classes, {"eval": eval_fraction, "test": test_fraction}, seed)
    packed, quarantined = _write_splits(splits, classes, source, out, progress, len(files))
    _write_quarantine(quarantined, out)
    manifest = Manifest(
        classes=classes, splits=packed, quarantined=len(quarantined), made_from=made_from
    )
    manifests.write(manifest, out)
    return manifest


def _check_fractions(eval_fraction: float, test_fraction: float) -> None:
    if not (0 < eval_fraction < 1 and 0 <= test_fraction and eval_fraction + test_fraction < 1):
        raise DatasetError(
            f"eval-fraction {eval_fraction:g} and test-fraction {test_fraction:g} leave no train "
            "images: expected 0 < eval-fraction, and a sum below 1"
        )


def _listing(source: str) -> tuple[tuple[str, ...], list[Source]]:
    """Class names, sorted, and every image file below their folders, sorted by path."""
    found = storage.sizes(source)
    if not found and not storage.exists(source):
        raise DatasetError(f"source {source} does not exist: check the path")
    images = {
        path: size
        for path, size in found.items()
        if "/" in path and path.lower().endswith(SUFFIXES)
    }
    classes = tuple(sorted({path.split("/")[0] for path in images}))
    if not images:
        raise DatasetError(
            f"no images in {source} ({len(found)} files): expected one folder per class, each "
            f"with {', '.join(SUFFIXES)} files"
        )
    if len(classes) < 2:
        raise DatasetError(
            f"{source} has one class folder ({classes[0]}): a classifier needs two or more"
        )
    label = {name: index for index, name in enumerate(classes)}
    return classes, [
        Source(id=index, path=path, label=label[path.split("/")[0]], bytes=images[path])
        for index, path in enumerate(sorted(images))
    ]


def _listing_digest(files: Sequence[Source]) -> str:
    lines = (f"{file.path}\t{file.bytes}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _already_packed(out: str, made_from: dict[str, str | int | float]) -> Manifest | None:
    """The manifest at `out` if it came from the same listing and seed; None if there is none."""
    if not storage.exists(storage.join(out, manifests.NAME)):
        return None
    there = manifests.load(out)
    here = {name: value for name, value in made_from.items() if name != "source"}
    if here.items() <= there.made_from.items():
        return there
    raise DatasetError(
        f"{out} holds another data set (from {there.made_from.get('source', 'elsewhere')}, seed "
        f"{there.made_from.get('seed', '?')}): choose another --out, or delete it first"
    )


def _split(
    files: Sequence[Source], classes: Sequence[str], fractions: dict[str, float], seed: int
) -> dict[str, list[Source]]:
    """Shuffled files per split, the same share of every class in each."""
    splits: dict[str, list[Source]] = {"train": [], **{name: [] for name in fractions}}
    for label, name in enumerate(classes):
        mine = [file for file in files if file.label == label]
        order = np.random.default_rng([seed, label]).permutation(len(mine))
        taken = 0
        for split, fraction in fractions.items():
            count = max(1, round(fraction * len(mine))) if fraction else 0
            splits[split] += [mine[i] for i in order[taken : taken + count]]
            taken += count
        if taken >= len(mine):
            raise DatasetError(
                f"class {name!r} has {len(mine)} images, too few for every split: add images or "
                "remove the class"
            )
        splits["train"] += [mine[i] for i in order[taken:]]
    for index, split in enumerate(splits):
        order = np.random.default_rng([seed, len(classes), index]).permutation(len(splits[split]))
        splits[split] = [splits[split][i] for i in order]
    return {name: split for name, split in splits.items() if split}


def _write_splits(
    splits: dict[str, list[Source]],
    classes: Sequence[str],
    source: str,
    out: str,
    progress: Progress,
    total: int,
) -> tuple[dict[str, tuple[Shard, ...]], list[Packed]]:
    done = 0
    written: dict[str, tuple[Shard, ...]] = {}
    quarantined: list[Packed] = []
    for split, files in splits.items():
        shards = []
        for index, part in enumerate(_parts(files)):
            images = _read_all(part, source)
            good = [image for image in images if not image.reason]
            quarantined += [image for image in images if image.reason]
            if good:
                path = f"{split}/{index:05d}.parquet"
                shards.append(_write_shard(good, classes, path, out))
            done += len(part)
            progress(done, total)
        written[split] = tuple(shards)
    return written, quarantined


def _parts(files: Sequence[Source]) -> Iterator[list[Source]]:
    """Files of one shard at a time; cut by listed sizes, so that reading decides nothing."""
    part: list[Source] = []
    size = 0
    for file in files:
        part.append(file)
        size += file.bytes
        if size >= SHARD_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _read_all(part: Sequence[Source], source: str) -> list[Packed]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda file: _read(file, source), part))


def _read(file: Source, source: str) -> Packed:
    """Read and decode one file; a file that is no image is a Packed with a reason."""
    try:
        data = storage.read_bytes(storage.join(source, file.path))
    except StorageError as error:
        raise DatasetError(
            f"{file.path} vanished or is unreadable while packing: {error}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    try:
        decode(data)
    except ImageError as error:
        return Packed(file, data, digest, str(error))
    return Packed(file, data, digest, "")


def _schema(classes: Sequence[str]) -> pa.Schema:
    """Our columns, with class names where Hugging Face's `datasets` looks for them."""
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "digest": {"dtype": "string", "_type": "Value"},
    }
    return pa.schema(
        [
            ("id", pa.int64()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("digest", pa.string()),
        ],
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "classes": json.dumps(list(classes)),
        },
    )


def _write_shard(images: Sequence[Packed], classes: Sequence[str], path: str, out: str) -> Shard:
    schema = _schema(classes)
    groups = list(_row_groups(images))
    with tempfile.TemporaryDirectory(prefix="effnet-pack-") as folder:
        local = Path(folder) / "shard.parquet"
        # Images are compressed already; page checksums let any Parquet reader find bit flips.
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
        with pq.ParquetWriter(local, schema, write_page_checksum=True, **options) as writer:
            for group in groups:
                writer.write_table(_table(group, schema), row_group_size=len(group))
        raw = local.read_bytes()
        storage.upload(local, storage.join(out, path))
    return Shard(
        path=path,
        row_groups=tuple(len(group) for group in groups),
        bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _row_groups(images: Sequence[Packed]) -> Iterator[list[Packed]]:
    group: list[Packed] = []
    size = 0
    for image in images:
        group.append(image)
        size += len(image.data)
        if len(group) == ROW_GROUP_IMAGES or size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(images: Sequence[Packed], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": image.source.id,
                "image": {"bytes": image.data, "path": image.source.path},
                "label": image.source.label,
                "digest": image.digest,
            }
            for image in images
        ],
        schema=schema,
    )


def _write_quarantine(quarantined: Sequence[Packed], out: str) -> None:
    """Name every unusable file; the table is there, empty, when there was none."""
    schema = pa.schema([(name, pa.string()) for name in ("path", "reason", "digest")])
    rows = [{"path": q.source.path, "reason": q.reason, "digest": q.digest} for q in quarantined]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    storage.write_bytes(storage.join(out, QUARANTINE), sink.getvalue().to_pybytes())
