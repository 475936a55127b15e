"""Packs a source when a job first uses it, and finds the packed data set again.

    RUNS/packed/<key>/manifest.json

The key is a digest of the source's URI and of its files with their sizes and times (on S3 their
ETags), so a source that changed is packed into another folder. A run keeps the folder that it
began with. Folders that no run needs any more may be deleted.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from effnet_ray import safe_json, storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import DatasetError, InputError
from effnet_ray.packing import hub, sources, tables
from effnet_ray.packing.hub import HubDataset
from effnet_ray.packing.listing import WORK_FOLDER, Map
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import STARTED, pack
from effnet_ray.packing.shard_jobs import OnProgress
from effnet_ray.storage import Entry

FOLDER = "packed"
SOURCE = "source.json"
"""File beside the manifest that names the source."""
FORMAT = 1
"""Part of the key: a later version whose packing differs counts on."""
KEY_DIGITS = 16
NOTES = (".txt", ".csv", ".md", ".html", ".json", ".log", ".pdf")
"""Files among images that people add later, such as notes and reports: they change nothing."""
FLAGS = [f"--{field.name.replace('_', '-')}" for field in fields(Packing)]
"""The flags of `pack` alone."""


@dataclass(frozen=True, slots=True)
class PackedSource:
    """A source, and the data set that is packed from it."""

    source: str
    uri: str
    """Where the data set is, or will be."""
    on_hub: HubDataset | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it is packed."""
        return storage.exists(storage.join(self.uri, manifests.NAME))

    def describe(self) -> str:
        """What would be packed, without reading the images. Raises DatasetError."""
        if self.on_hub:
            return f"{self.source}: {len(self.on_hub.files):,} files to fetch"
        if sources.has_archives(self.source):
            return f"{self.source}: archives, which are read when they are packed"
        with self._advice_for_data():
            listing = sources.list_images(self.source, Packing(), self.uri, map)
        images, classes = len(listing.images), len(listing.classes)
        return f"{self.source}: {images:,} images of {classes:,} classes, not packed yet"

    def make(self, on_progress: OnProgress | None = None, map_function: Map = map) -> Manifest:
        """Pack the source, unless that is done; as `pack` with its defaults.

        Several jobs may do so at once: each writes the same shards.
        """
        record = json.dumps({"source": self.source}).encode()
        storage.write_bytes(storage.join(self.uri, SOURCE), record)
        source = self.on_hub.download() if self.on_hub else self.source
        try:
            with self._advice_for_data():
                return pack(source, self.uri, on_progress=on_progress, map_function=map_function)
        except InputError:
            if not self.is_ready:
                raise
            # Another job was done first, and has deleted the files that both needed.
            return manifests.load(self.uri)

    @contextmanager
    def _advice_for_data(self) -> Iterator[None]:
        """Rewrite the advice of an error for a job whose flag is --data."""
        try:
            yield
        except DatasetError as error:
            message = str(error).replace("--source", "--data")
            if any(flag in message for flag in FLAGS):
                message += (
                    f". These are flags of pack: effnet-ray pack --source {self.source} --out "
                    "DATA, then pass --data DATA"
                )
            raise DatasetError(message) from error


def is_source(data: str) -> bool:
    """Whether `data` is something to pack: not a packed data set, complete or interrupted."""
    if hub.is_on_hub(data):
        return True
    data = storage.absolute(data)
    is_manifest = data.endswith(f"/{manifests.NAME}")
    started, manifest = (
        storage.join(data, name) for name in (f"{WORK_FOLDER}/{STARTED}", manifests.NAME)
    )
    if is_manifest or storage.exists(started) or not storage.exists(data):
        return False
    return not storage.exists(manifest) or not manifests.is_manifest(manifest)


def find(source: str, runs: str) -> PackedSource:
    """Where the source is packed, or would be. Raises DatasetError if it cannot be listed."""
    on_hub = hub.find(source) if hub.is_on_hub(source) else None
    source = source if on_hub else storage.absolute(source)
    folder = storage.join(storage.absolute(runs), FOLDER)
    if f"{folder}/".startswith(f"{source}/"):
        raise DatasetError(
            f"--runs {runs} is inside of --data {source}, so every run would change the data: "
            "choose another --runs"
        )
    content = [on_hub.key] if on_hub else [source, _signature(source)]
    digest = hashlib.sha256(json.dumps([FORMAT, *content]).encode()).hexdigest()
    return PackedSource(source, storage.join(folder, digest[:KEY_DIGITS]), on_hub)


def source_of(data: str) -> str:
    """The source that a data set of this module is packed from; empty for any other."""
    record = storage.join(data, SOURCE)
    if not storage.exists(record) or not storage.exists(storage.join(data, manifests.NAME)):
        return ""
    return str(safe_json.parse(storage.read_bytes(record))["source"])


def _signature(source: str) -> str:
    """A digest of everything that the source's images are read from."""
    if not source.lower().endswith(tables.SUFFIXES):
        entries = storage.entries(source, follow_links=True).items()
        return _digest((path, entry) for path, entry in entries if not _is_note(path))
    files = [source, *tables.image_files(source, Packing())]
    return _digest(tables.file_entries(files, source).items())


def _is_note(path: str) -> bool:
    return path.lower().endswith(NOTES)


def _digest(entries: Iterable[tuple[str, Entry]]) -> str:
    sha = hashlib.sha256()
    for path, entry in entries:
        version = entry.etag or entry.modified
        sha.update(json.dumps([path, entry.size, version]).encode())
    return sha.hexdigest()
