"""Processes that publish, promote and clean up at once, and what a store holds afterwards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from effnet_ray import storage
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format import layout
from effnet_ray.release_format.record import read_record
from effnet_ray.storage import checksummed_json
from support.store_worker import files


class Workers:
    """Children that do things to a store, killed where told."""

    def __init__(self, place: str, single_writer: bool) -> None:
        self.store = ModelStore(f"{place}/store", single_writer)
        script = str(Path(__file__).with_name("store_worker.py"))
        self._server = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *jobs: list[list[Any]], **more: Any) -> list[dict[str, Any]]:
        """Every job, a list of actions, in a child of its own, all at once."""
        return self.run_jobs([{**more, "do": job} for job in jobs])

    def run_jobs(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same, with more settings for each job."""
        common = {"store": self.store.uri, "single_writer": self.store.single_writer}
        assert self._server.stdin and self._server.stdout
        print(json.dumps([{**common, **job} for job in jobs]), file=self._server.stdin)
        self._server.stdin.flush()
        output: list[dict[str, Any]] = json.loads(self._server.stdout.readline())
        return output

    def end(self) -> None:
        """No more jobs."""
        self._server.communicate(timeout=30)


def content(store: ModelStore, name: str, version: int) -> dict[str, bytes]:
    """A release's files, verified."""
    release = store.find(f"{name}@v{version}")
    record = read_record(release.uri)
    return {
        file: checksummed_json.read_file(release.uri, file, record) for file in record["files"]
    }


def all_files(store: ModelStore, name: str) -> set[str]:
    """Every path below the model's folder, hidden ones too, locks left out."""
    result = storage.entries(storage.join(store.uri, name), hidden=True)
    return {path for path in result if not path.endswith(".lock")}


def expected_files(versions: int, *aliases: str) -> set[str]:
    """What a model's folder holds when all is well."""
    names = (*files("", 0), layout.RECORD)
    releases = {f"v{v:04d}/{name}" for v in range(1, versions + 1) for name in names}
    claims = {f"claims/v{v:04d}.json" for v in range(1, versions + 1)}
    return releases | claims | {f"aliases/{alias}.json" for alias in aliases}
