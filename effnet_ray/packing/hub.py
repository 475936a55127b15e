"""Data sets of the Hugging Face hub, fetched by its own client into its own cache.

    hf://datasets/OWNER/NAME[@REVISION][/FOLDER]

Only files that packing reads are fetched. A repository without any, which has a loading script, is
read from the Parquet files that the hub converts it to.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from effnet_ray.data.image_files import IMAGE_SUFFIXES
from effnet_ray.errors import DatasetError, quote
from effnet_ray.packing import archives
from effnet_ray.packing.listing import SPLIT_NAMES

PREFIX = "hf://"
ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/*")
MAX_ILLUSTRATIONS = 20
"""Pictures of a data card that a repository of archives may have in folders. Chosen, not
measured."""
CONVERTED = "refs/convert/parquet"
"""Revision with the hub's own Parquet files (huggingface.co/docs/dataset-viewer/parquet)."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A revision of a data set on the hub."""

    address: str
    repository: str
    commit: str
    files: tuple[str, ...]
    """The files that packing reads."""
    folder: str
    """The folder that contains them; empty for the repository's root."""

    @property
    def key(self) -> str:
        """What identifies the content, whatever the time."""
        return f"{self.repository}@{self.commit}/{self.folder}"

    def download(self) -> str:
        """Fetch the files, unless the cache has them; returns the local folder."""
        try:
            root = HfApi().snapshot_download(
                self.repository,
                repo_type="dataset",
                revision=self.commit,
                allow_patterns=[glob.escape(file) for file in self.files],
            )
        except Exception as error:
            raise _fetch_error(self.address, error) from error
        return str(Path(root) / self.folder)


def is_on_hub(source: str) -> bool:
    """Whether a source is an address of the hub."""
    return source.startswith(PREFIX)


def find(address: str) -> HubDataset:
    """Look the data set up.

    Raises DatasetError for an invalid address, for a hub that cannot be reached or does not have
    it, and for a data set of several configurations.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise DatasetError(
            f"{address} is not the address of a data set: expected "
            "hf://datasets/OWNER/NAME[@REVISION][/FOLDER]"
        )
    repository, revision, folder = match.group(1), match.group(2), match.group(3) or ""
    _refuse_escapes(address, folder)
    commit, files = _list_files(address, repository, revision)
    chosen = _readable(address, files, folder)
    if not chosen and not revision:
        commit, files = _list_files(address, repository, CONVERTED)
        chosen = _readable(address, files, folder)
    if not chosen:
        raise DatasetError(
            f"{address} is no folder with Parquet files, tars or images: choose another folder or "
            "data set"
        )
    if not folder:
        folder = _only_folder(address, chosen)
    return HubDataset(address, repository, commit, tuple(chosen), folder)


def _list_files(address: str, repository: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a revision, and its files."""
    try:
        info = HfApi().dataset_info(repository, revision=revision)
    except Exception as error:  # the hub's client raises httpx, OSError and its own kinds
        raise _fetch_error(address, error) from error
    files = sorted(file.rfilename for file in info.siblings or ())
    for file in files:
        _refuse_escapes(address, file)
    return info.sha or "", files


def _refuse_escapes(address: str, path: str) -> None:
    """Raise DatasetError for a path that could lead out of its folder."""
    if path.startswith("/") or {"..", "."} & set(path.split("/")):
        raise DatasetError(
            f"{address} names {path!r}, which is outside of the data set: correct it"
        )


def _readable(address: str, files: Sequence[str], folder: str) -> list[str]:
    """The archives in a folder, or else the images and tables.

    Raises DatasetError for archives beside more images in folders than illustrate a data card.
    """
    inside = [file for file in files if not folder or file.startswith(f"{folder}/")]
    in_archives = [file for file in inside if file.lower().endswith(archives.SUFFIXES)]
    images = [file for file in inside if file.lower().endswith(IMAGE_SUFFIXES)]
    in_folders = [file for file in images if "/" in file[len(folder) :].strip("/")]
    if in_archives and len(in_folders) > MAX_ILLUSTRATIONS:
        raise DatasetError(
            f"{address} has archives ({in_archives[0]}) and {len(in_folders):,} images in folders "
            f"({in_folders[0]}): add the folder that you want to the address"
        )
    tables = [file for file in inside if file.lower().endswith((".csv", ".tsv"))]
    return in_archives or (images and sorted(images + tables))


def _only_folder(address: str, files: Sequence[str]) -> str:
    """The folder of all archives; the root if their folders are the splits.

    Raises DatasetError for several: each is a configuration.
    """
    folders = sorted({file.split("/")[0] if "/" in file else "" for file in files})
    in_archives = any(file.lower().endswith(archives.SUFFIXES) for file in files)
    if not in_archives or all(name.lower() in SPLIT_NAMES for name in folders):
        return ""
    if len(folders) > 1:
        names = [name or "its root" for name in folders]
        raise DatasetError(
            f"{address} has the configurations {', '.join(names)}: add the one that you want, "
            f"such as {address.rstrip('/')}/{next(filter(None, folders))}"
        )
    return folders[0]


def _fetch_error(address: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"cannot fetch {address} from the hub ({quote(error)}): check the address and the "
        "network; for a private or gated data set set HF_TOKEN"
    )
