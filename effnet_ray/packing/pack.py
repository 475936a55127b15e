"""Labelled images in any common form → Parquet shards and, last of all, manifest.json.

Packing shuffles globally, so every row group is a random sample of the classes. It is
deterministic: the same source and seed give the same ids, shards and fingerprint, whatever the
parallelism and destination. Every shard is an independent job that any machine can run. Packing
again after an interruption reuses the completed shards.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields

import numpy as np
import numpy.typing as npt

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import SPLITS, Manifest
from effnet_ray.errors import DatasetError
from effnet_ray.packing import hub, in_place, sources, splits
from effnet_ray.packing.corrections import (
    NAME as CORRECTIONS,
    Corrections,
    apply_corrections,
    read_corrections,
)
from effnet_ray.packing.image_index import check_kept, update_kept_columns
from effnet_ray.packing.listing import WORK_FOLDER, Listing, Map, flat_labels
from effnet_ray.packing.options import Packing, SourceColumns
from effnet_ray.packing.results import MadeFrom, all_records, write_results
from effnet_ray.packing.shard_jobs import OnProgress, ShardWriter
from effnet_ray.packing.shards import WrittenShard
from effnet_ray.packing.splits import Ints
from effnet_ray.recipe import MULTILABEL
from effnet_ray.storage.parquet import column_values

STARTED = "begun.json"
"""In the work folder: what the shards beside it are made from."""

WITHOUT_EFFECT = {field.name for field in fields(SourceColumns)} - {"corrections"}
"""Options that do not change what is written, given the listing: its digest covers what the
columns contain."""


def pack(
    source: str,
    out: str,
    packing: Packing | None = None,
    *,
    on_progress: OnProgress | None = None,
    map_function: Map = map,
) -> Manifest:
    """Pack the images of `source` into shards and a manifest under `out`.

    `source` is local, on s3:// or a data set of the hub (hf://datasets/OWNER/NAME). Unreadable
    images are left out and listed, with the reason, in `out`/quarantine.parquet; identical and
    nearly identical ones in duplicates.parquet; report.json has counts and what was set aside.
    `map_function` runs the jobs of archives and shards: here, or all over a cluster. An
    interrupted packing is continued; a complete one is returned as it is. Raises DatasetError for
    a source that cannot be packed, or another data set at `out`; StorageError if a URI cannot be
    used.
    """
    packing = packing or Packing()
    source = hub.find(source).download() if hub.is_on_hub(source) else storage.absolute(source)
    out = storage.absolute(out)
    _check_out(source, out, packing)
    if packing.in_place:
        return in_place.write_manifest(source, packing, map_function)
    listed = sources.list_images(source, packing, out, map_function)
    check_kept(listed, packing, source)
    corrections = read_corrections(packing.corrections) if packing.corrections else None
    listing, kept = _apply(listed, corrections, packing)
    made_from = _made_from(source, listing, packing, corrections)
    existing = _load_existing(out, made_from)
    if existing:
        update_kept_columns(listing, packing, out)
        storage.delete(storage.join(out, WORK_FOLDER))  # the listing of archives may have used it
        return existing
    # As without corrections, so that an image stays in its split when others are corrected.
    split = _assign_splits(listed, packing, source)[kept]
    _prepare_folder(out, made_from)
    _write_corrections(corrections, out)
    writer = ShardWriter(listing, packing, out, on_progress, map_function)
    written = writer.write(splits.shuffled(split, packing.seed))
    final_split = _merge_duplicates(written, listing, split, packing, source)
    if (final_split != split).any():
        written = writer.rewrite(split, final_split)
    manifest = write_results(listing, written, split, final_split, packing, made_from, out)
    storage.delete(storage.join(out, WORK_FOLDER))
    return manifest


def _check_out(source: str, out: str, packing: Packing) -> None:
    """Raise DatasetError for a data set that would be written into the wrong folder."""
    if packing.in_place and out != source:
        raise DatasetError(
            f"--in-place writes the manifest beside the existing shards: pass --out {source}"
        )
    if not packing.in_place and out == source:
        raise DatasetError(f"--out {out} is the source itself: choose another folder")


def _apply(
    listed: Listing, corrections: Corrections | None, packing: Packing
) -> tuple[Listing, npt.NDArray[np.bool_]]:
    """The listing after the corrections, and which of its images are left."""
    if not corrections:
        return listed, np.ones(len(listed.images), bool)
    return apply_corrections(listed, corrections, packing.corrections, packing)


def _write_corrections(corrections: Corrections | None, out: str) -> None:
    """Keep the decided rows beside the manifest; remove those of an interrupted packing."""
    uri = storage.join(out, CORRECTIONS)
    if corrections:
        storage.write_bytes(uri, corrections.to_csv())
    elif storage.exists(uri):
        storage.delete(uri)


def _made_from(
    source: str, listing: Listing, packing: Packing, corrections: Corrections | None
) -> MadeFrom:
    """Return what determines the data set, for the manifest and for packing again."""
    options = {
        name: value
        for name, value in asdict(packing).items()
        if name not in {*WITHOUT_EFFECT, "corrections"} and value is not None
    }
    made_from = {"source": source, "listing": listing.digest, **options}
    if corrections:
        made_from["corrections"] = corrections.digest
    return made_from


def _load_existing(out: str, made_from: MadeFrom) -> Manifest | None:
    """Return the manifest at `out`, None if there is none.

    Raises DatasetError if it has another listing or other options.
    """
    if not storage.exists(storage.join(out, manifests.NAME)):
        return None
    existing = manifests.load(out)
    options = asdict(Packing()) | {"corrections": None}
    defaults = {name: value for name, value in options.items() if value is not None}
    ours, theirs = _comparable(made_from), _comparable(defaults | existing.made_from)
    names = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if not names:
        return existing
    if "listing" in names:
        source = existing.made_from.get("source", "elsewhere")
        difference = f"contains another data set (from {source}, with other images or labels)"
    else:
        difference = "was packed with " + ", ".join(
            f"{name} {theirs.get(name)}, not {ours.get(name)}" for name in names
        )
    raise DatasetError(f"{out} {difference}: choose another --out, or delete it first")


def _comparable(made_from: MadeFrom) -> MadeFrom:
    """Leave out where the source is and how it is read: the same listing is the same source."""
    ignored = {"source", *WITHOUT_EFFECT}
    return {name: value for name, value in made_from.items() if name not in ignored}


def _prepare_folder(out: str, made_from: MadeFrom) -> None:
    """Delete the shards of another, interrupted packing. Raises DatasetError for other files."""
    uri = storage.join(out, WORK_FOLDER, STARTED)
    # `duplicates` takes effect after the shards are written, so it may change in between.
    content = {name: value for name, value in made_from.items() if name != "duplicates"}
    started = json.dumps(content).encode()
    if storage.exists(uri):
        if storage.read_bytes(uri) == started:
            return
        for split in SPLITS:
            storage.delete(storage.join(out, split))
    else:
        foreign = [path for path in storage.sizes(out) if path.split("/")[0] in SPLITS]
        if foreign:
            raise DatasetError(
                f"{out} contains files that packing did not write ({foreign[0]}): choose "
                "another --out, or delete them"
            )
    storage.write_bytes(uri, started)


def _assign_splits(listing: Listing, packing: Packing, source: str) -> Ints:
    """Return the split of every image, before duplicates are known."""
    names_in_source = column_values(listing.images, "split")
    given = np.asarray(
        [splits.UNASSIGNED if name is None else SPLITS.index(name) for name in names_in_source],
        np.int64,
    )
    _refuse_untrained_classes(listing, given, packing, source)
    unit = splits.factorize(column_values(listing.images, "group"))
    fractions = {"eval": packing.eval_fraction, "test": packing.test_fraction}
    labels, names = listing.images["label"], listing.classes
    if packing.task == MULTILABEL:
        stratum, names = splits.strata(
            labels.to_pylist(), unit, given, names, min_units=len(fractions) + 1
        )
    else:
        stratum = labels.to_numpy()
    return splits.assign(stratum, unit, given, names, fractions, packing.seed)


def _refuse_untrained_classes(
    listing: Listing, given: Ints, packing: Packing, source: str
) -> None:
    """Raise DatasetError for a class with images in the source's eval or test split only."""
    image, label = flat_labels(listing.images)
    for_training = (given[image] == splits.UNASSIGNED) | (given[image] == SPLITS.index("train"))
    if not for_training.any():
        raise DatasetError(f"{source} has no train images: add a train split")
    untrained = sorted({*label.tolist()} - {*label[for_training].tolist()})
    if untrained and not packing.allow_empty_classes:
        others = f" and {len(untrained) - 1} more" if len(untrained) > 1 else ""
        raise DatasetError(
            f"{source} has no train images of class {listing.classes[untrained[0]]!r}{others}, "
            "only eval or test images: add train images, remove the class, or run again with "
            "--allow-empty-classes"
        )


def _merge_duplicates(
    written: dict[str, WrittenShard], listing: Listing, split: Ints, packing: Packing, source: str
) -> Ints:
    """Return the splits with identical images in one split.

    Raises DatasetError if images would move and `packing.duplicates` is `refuse`, or if a split
    would be empty.
    """
    records = all_records(written)
    # An unreadable image (mostly an empty file) is no duplicate of another.
    pairs = zip(column_values(records, "digest"), column_values(records, "reason"), strict=True)
    digests = splits.factorize([None if reason else digest for digest, reason in pairs])
    unit = splits.factorize(column_values(listing.images, "group"))
    final_split = splits.merge_groups(digests, unit, split)
    _check_moves(column_values(records, "path"), digests, split, final_split, packing, source)
    return final_split


def _check_moves(
    paths: Sequence[str], digests: Ints, before: Ints, after: Ints, packing: Packing, source: str
) -> None:
    """Raise DatasetError if moves are refused, or if they empty a split."""
    # Images of their groups move too, but have no identical image to name.
    moved = np.flatnonzero((after != before) & splits.in_several_splits(digests, before))
    if packing.duplicates == "refuse" and len(moved):
        image = int(moved[0])
        other = int(np.flatnonzero((digests == digests[image]) & (before != before[image]))[0])
        raise DatasetError(
            f"{len(moved):,} images of {source} have an identical image in another split, for "
            f"example {paths[image]} ({SPLITS[before[image]]}) and {paths[other]} "
            f"({SPLITS[before[other]]}): remove them, or run again with --duplicates move"
        )
    emptied = [name for i, name in enumerate(SPLITS) if i in before and i not in after]
    if emptied:
        raise DatasetError(
            f"every {emptied[0]} image of {source} has an identical one in another split: remove "
            "the duplicates, or add other images"
        )
