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

PREFIX = "hf://"
ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/*")
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
    commit, files = _list_files(address, repository, revision)
    chosen = _readable(files, folder)
    if not chosen and not revision:
        commit, files = _list_files(address, repository, CONVERTED)
        chosen = _readable(files, folder)
    if not chosen:
        raise DatasetError(
            f"{address} has no Parquet files, tars or images: choose another folder or data set"
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
    return info.sha or "", sorted(file.rfilename for file in info.siblings or ())


def _readable(files: Sequence[str], folder: str) -> list[str]:
    """The archives in a folder, or else the images and tables."""
    inside = [file for file in files if not folder or file.startswith(f"{folder}/")]
    for suffixes in (archives.SUFFIXES, (*IMAGE_SUFFIXES, ".csv", ".tsv")):
        chosen = [file for file in inside if file.lower().endswith(suffixes)]
        if any(not file.lower().endswith((".csv", ".tsv")) for file in chosen):
            return chosen
    return []


def _only_folder(address: str, files: Sequence[str]) -> str:
    """The folder of all archives. Raises DatasetError for several: each is a configuration."""
    if not any(file.lower().endswith(archives.SUFFIXES) for file in files):
        return ""
    folders = sorted({file.split("/")[0] if "/" in file else "" for file in files})
    if len(folders) > 1:
        raise DatasetError(
            f"{address} has the configurations {', '.join(folders)}: add the one that you want, "
            f"such as {address.rstrip('/')}/{next(filter(None, folders))}"
        )
    return folders[0]


def _fetch_error(address: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"cannot fetch {address} from the hub ({quote(error)}): check the address and the "
        "network; for a private or gated data set set HF_TOKEN"
    )
