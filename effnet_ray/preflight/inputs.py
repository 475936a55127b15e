"""Checks what a run reads: the data set and the pretrained weights."""

from collections.abc import Iterator
from dataclasses import replace

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.classes import format_label
from effnet_ray.data.decode import decode
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.row_group import RowGroup
from effnet_ray.errors import DatasetError, ImageError
from effnet_ray.model import pretrained
from effnet_ray.packing.on_demand import PackedSource
from effnet_ray.preflight.findings import Finding, run_check
from effnet_ray.recipe import Recipe
from effnet_ray.train.teacher import read_teacher


def check_inputs(recipe: Recipe, data: str, mirror: str | None) -> Iterator[Finding]:
    """The data set against its manifest, one row group read as a run reads it, and the weights."""
    data = storage.absolute(data)
    yield run_check("data", lambda: _check_data(data, recipe.limit))
    yield run_check("first image", lambda: _check_first_image(manifests.load(data), data))
    yield check_weights(recipe, mirror)
    if recipe.teacher:
        yield run_check("teacher", lambda: _check_teacher(recipe, manifests.load(data)))


def _check_teacher(recipe: Recipe, manifest: Manifest) -> str:
    assert recipe.teacher
    teacher = read_teacher(recipe.teacher, manifest.classes, recipe.task or manifest.task)
    return f"{teacher.uri}: {teacher.variant}, {teacher.spec.resolution} px"


def check_weights(recipe: Recipe, mirror: str | None) -> Finding:
    """Where the pretrained weights would be read."""
    return run_check(
        "weights", lambda: pretrained.weights_source(pretrained.resolve(recipe), mirror)
    )


def check_source(source: PackedSource) -> Finding:
    """What the first run would pack. The images themselves are not read."""
    finding = run_check("data", source.describe)
    advice = f"the first run packs it into {source.uri}" if finding.ok else ""
    return replace(finding, do=advice)


def _check_data(data: str, limit: int | None) -> str:
    manifest = manifests.load(data)
    manifests.check_trainable(manifest.limited(limit), data)
    counts = " and ".join(f"{count:,} {split}" for split, count in manifest.images.items())
    shards = [shard for split in manifest.splits.values() for shard in split]
    size = sum(shard.bytes for shard in shards) / 1e6
    return f"{data}: {counts} images of {len(manifest.classes)} classes, {size:,.1f} MB"


def _check_first_image(manifest: Manifest, data: str) -> str:
    """Reads with Arrow, whose S3 client differs from the one that reads the manifest."""
    group = RowGroup(manifest, manifests.folder(data), "train", 0, limited=False)
    record = group.record(0)
    try:
        if isinstance(record.data, ImageError):
            raise record.data
        height, width = decode(record.data).shape[:2]
    except ImageError as error:
        raise DatasetError(
            f"the first image ({record.path}) cannot be decoded: {error}: pack again"
        ) from error
    label = format_label(record.label, manifest.classes)
    return f"{record.path}: {width}×{height} px, {label}"
