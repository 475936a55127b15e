"""Labelled images in any common form → Parquet shards and, last of all, manifest.json.

Packing shuffles globally, so that every row group is a fair sample of the classes, and is
deterministic: the same source and seed give the same ids, shards and fingerprint, for any
parallelism and destination. Every shard is a job of its own that any machine can do; what was
done is found again when packing is run again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, fields

import numpy as np
import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data import classes, manifest as manifests
from effnet_ray.data.manifest import SPLITS, Manifest, Shard
from effnet_ray.errors import DatasetError
from effnet_ray.packing import duplicates, in_place, report, shards, sources, splits
from effnet_ray.packing.options import Packing, SourceColumns
from effnet_ray.packing.shards import ShardJob, WrittenShard
from effnet_ray.packing.sources import WORK, Listing, Map
from effnet_ray.packing.splits import Ints
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage import parquet
from effnet_ray.storage.parquet import column_values

SHARD_BYTES = 128 * 1024**2

QUARANTINE = "quarantine.parquet"
DUPLICATES = "duplicates.parquet"
BEGUN = "begun.json"

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


def pack(
    source: str,
    out: str,
    packing: Packing | None = None,
    *,
    progress: Progress = lambda done, total: None,
    each: Map = map,
) -> Manifest:
    """Pack the images of `source` (local or s3://) into shards and a manifest under `out`.

    Unreadable images are left out and named, with the reason, in `out`/quarantine.parquet;
    equal and nearly equal ones in duplicates.parquet; counts are in report.json. `each` runs the
    shards' jobs: here, or all over a cluster. An interrupted packing is continued; a finished one
    is reported, not redone. Raises DatasetError for a source that cannot be packed, or another
    data set at `out`; StorageError where a URI cannot be used.
    """
    packing = packing or Packing()
    source, out = storage.absolute(source), storage.absolute(out)
    work = storage.join(out, WORK)
    if packing.in_place:
        if out != source:
            raise DatasetError(f"--in-place leaves the shards where they are: use --out {source}")
        return in_place.index(source, packing, each)
    if out == source:
        raise DatasetError(f"--out {out} is the source itself: choose another folder")
    listing = sources.find(source, packing, out, each)
    made_from = _made_from(source, listing, packing)
    done = _already_packed(out, made_from)
    if done:
        return done
    split = _assigned(listing, packing)
    _begin(out, made_from)
    job = _Packer(listing, packing, out, progress, each)
    written = job.write(split, splits.shuffled(split, packing.seed))
    final = _together(written, listing, split, packing, source)
    if (final != split).any():
        written = job.rewrite(split, final)
    manifest = _conclude(listing, written, split, final, made_from, out)
    storage.delete(work)
    return manifest


def _made_from(source: str, listing: Listing, packing: Packing) -> dict[str, str | int | float]:
    """What decides the data set, for people and for packing again."""
    told: dict[str, str | int | float] = {"source": source, "listing": listing.digest}
    named = {field.name for field in fields(SourceColumns)}  # their outcome is in the listing
    return told | {
        name: value
        for name, value in asdict(packing).items()
        if name not in named and value is not None
    }


def _already_packed(out: str, made_from: dict[str, str | int | float]) -> Manifest | None:
    """The manifest at `out` if it has the same listing and choices; None if none is there."""
    if not storage.exists(storage.join(out, manifests.NAME)):
        return None
    there = manifests.load(out)
    defaults = {k: v for k, v in asdict(Packing()).items() if v is not None}
    if _choices(made_from) == _choices(defaults | there.made_from):
        return there
    raise DatasetError(
        f"{out} holds another data set (from {there.made_from.get('source', 'elsewhere')}, seed "
        f"{there.made_from.get('seed', '?')}): choose another --out, or delete it first"
    )


def _choices(made_from: dict[str, str | int | float]) -> dict[str, str | int | float]:
    """What must agree: everything but where the source lies and how it was read."""
    without = {"source", *(field.name for field in fields(SourceColumns))}
    return {name: value for name, value in made_from.items() if name not in without}


def _begin(out: str, made_from: dict[str, str | int | float]) -> None:
    """Make room: what another, interrupted packing left goes; anything else is refused."""
    uri = storage.join(out, WORK, BEGUN)
    # What is done about duplicates comes after the shards: it may change in between.
    begun = json.dumps({k: v for k, v in made_from.items() if k != "duplicates"}).encode()
    if storage.exists(uri):
        if storage.read_bytes(uri) == begun:
            return
        for split in SPLITS:
            storage.delete(storage.join(out, split))
    else:
        foreign = [path for path in storage.sizes(out) if path.split("/")[0] in SPLITS]
        if foreign:
            raise DatasetError(
                f"{out} has files in the way ({foreign[0]}) that are no data set of ours: choose "
                "another --out, or delete them"
            )
    storage.write_bytes(uri, begun)


def _assigned(listing: Listing, packing: Packing) -> Ints:
    """Every image's split before anything is known of its bytes."""
    given = [splits.UNASSIGNED if name is None else SPLITS.index(name)
             for name in column_values(listing.images, "split")]  # fmt: skip
    unit = splits.factorize(column_values(listing.images, "group"))
    fractions = {"eval": packing.eval_fraction, "test": packing.test_fraction}
    label, names = listing.images["label"], listing.classes
    if packing.task == MULTILABEL:
        number, names = splits.strata(
            label.to_pylist(), unit, np.asarray(given, np.int64), names, least=len(fractions) + 1
        )
    else:
        number = label.to_numpy()
    return splits.assign(number, unit, np.asarray(given, np.int64), names, fractions, packing.seed)


class _Packer:
    """Plans shards and has them written."""

    def __init__(
        self, listing: Listing, packing: Packing, out: str, progress: Progress, each: Map
    ) -> None:
        ids = pa.array(range(len(listing.images)), pa.int64())
        self._images = listing.images.append_column("id", ids)
        self._classes, self._packing, self._out = listing.classes, packing, out
        self._progress, self._each = progress, each
        self._planned: dict[str, Ints] = {}

    def write(self, split: Ints, order: dict[str, Ints]) -> dict[str, WrittenShard]:
        """Write every shard; its path → what was written."""
        sizes = self._images["bytes"].to_numpy()
        self._planned = {
            f"{name}/{index:05d}.parquet": ids
            for name in order
            for index, ids in enumerate(splits.parts(order[name], sizes, SHARD_BYTES))
        }
        return self._written(self._planned)

    def rewrite(self, before: Ints, after: Ints) -> dict[str, WrittenShard]:
        """Write again the shards that lose images; those go to further shards, at the end."""
        moved = np.flatnonzero(before != after)
        kept = {path: ids[~np.isin(ids, moved)] for path, ids in self._planned.items()}
        sizes = self._images["bytes"].to_numpy()
        for index, name in enumerate(SPLITS):
            taken = sum(path.startswith(f"{name}/") for path in kept)
            here = moved[after[moved] == index]
            for number, ids in enumerate(splits.parts(here, sizes, SHARD_BYTES), start=taken):
                kept[f"{name}/{number:05d}.parquet"] = ids
        return self._written(kept)

    def _written(self, planned: dict[str, Ints]) -> dict[str, WrittenShard]:
        jobs = [self._job(path, ids) for path, ids in planned.items()]
        done, total, written = 0, sum(map(len, planned.values())), {}
        for job, result in zip(jobs, self._each(shards.write, jobs), strict=True):
            written[job.path] = result
            done += len(planned[job.path])
            self._progress(done, total)
        return written

    def _job(self, path: str, ids: Ints) -> ShardJob:
        return ShardJob(
            out=self._out,
            path=path,
            classes=self._classes,
            images=self._images.take(ids),
            max_side=self._packing.max_side,
            records=storage.join(self._out, WORK, "shards"),
        )


def _seen(written: dict[str, WrittenShard]) -> pa.Table:
    """All that was seen, by id."""
    return pa.concat_tables([w.seen for w in written.values()]).sort_by("id")


def _together(
    written: dict[str, WrittenShard], listing: Listing, split: Ints, packing: Packing, source: str
) -> Ints:
    """The splits with equal images together. Raises DatasetError where that was not wanted."""
    seen = _seen(written)
    # An image that is left out, empty files above all, is nobody's duplicate.
    pairs = zip(column_values(seen, "digest"), column_values(seen, "reason"), strict=True)
    digests = splits.factorize([None if reason else digest for digest, reason in pairs])
    unit = splits.factorize(column_values(listing.images, "group"))
    final = splits.merge_groups(digests, unit, split)
    if packing.duplicates == "refuse" and (final != split).any():
        one = int(np.flatnonzero(final != split)[0])
        other = int(np.flatnonzero((digests == digests[one]) & (split != split[one]))[0])
        paths = seen["path"]
        raise DatasetError(
            f"{int((final != split).sum()):,} images of {source} have an equal one in another "
            f"split, among them {paths[one]} ({SPLITS[split[one]]}) and {paths[other]} "
            f"({SPLITS[split[other]]}): remove them, or run again with --duplicates move"
        )
    return final


def _conclude(
    listing: Listing,
    written: dict[str, WrittenShard],
    before: Ints,
    split: Ints,
    made_from: dict[str, str | int | float],
    out: str,
) -> Manifest:
    """Write the lists, the report and, last, the manifest."""
    seen = _seen(written)
    bad = seen.take(np.flatnonzero([bool(reason) for reason in column_values(seen, "reason")]))
    parquet.write_table(storage.join(out, QUARANTINE), bad.select(["path", "reason", "digest"]))
    twice = duplicates.duplicates_table(seen, split, listing.classes)
    parquet.write_table(storage.join(out, DUPLICATES), twice)
    manifest = Manifest(
        classes=listing.classes,
        splits=_by_split(written),
        quarantined=len(bad),
        task=classes.task_of(listing.images.schema.field("label").type),
        made_from=made_from,
    )
    moved = int((before != split).sum())
    report.write(report.build_report(manifest, seen, split, twice, moved), out)
    manifests.write(manifest, out)
    return manifest


def _by_split(written: dict[str, WrittenShard]) -> dict[str, tuple[Shard, ...]]:
    found = {
        name: tuple(
            w.shard for path, w in written.items() if path.startswith(f"{name}/") and w.shard.rows
        )
        for name in SPLITS
    }
    return {name: there for name, there in found.items() if there}
