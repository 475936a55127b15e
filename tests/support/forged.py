"""Shared by tests: forge."""

import hashlib
import json
from pathlib import Path

from effnet_ray.storage import checksummed_json


def forge(release: Path, name: str, data: bytes | None) -> None:
    """Replace a file and what is sealed of it, as whoever can write to a store can.

    None: take both away.
    """
    path, record = release / name, release / "release.json"
    told = json.loads(record.read_text())
    del told["files"][name], told["sizes"][name], told["sha256"]
    path.unlink()
    if data is not None:
        path.write_bytes(data)
        told["files"][name] = hashlib.sha256(data).hexdigest()
        told["sizes"][name] = len(data)
    record.write_bytes(checksummed_json.seal(told))
