"""A release's outputs by ONNX Runtime: on a CPU about three times as fast as torch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effnet_ray.errors import EffnetRayError, InputError
from effnet_ray.inference.export import INPUT, OUTPUTS, to_onnx
from effnet_ray.release.load import LoadedRelease, load_release

LOGITS, _, UNKNOWN = OUTPUTS
PACKAGES = "onnx", "onnxruntime", "onnxscript"
"""Those of the extra `onnx`."""
TIMEOUT_S = 600
"""The export of a b0 takes 4 s and its process 10 s; that of a b7 less than a minute."""
NICE = 5
"""The process of the export gives way to the requests that are answered meanwhile."""


class OnnxOutputs:
    """Computes logits and scores of unknown pictures, in float32 on one CPU core."""

    def __init__(self, release: LoadedRelease) -> None:
        """Export the release in another process: exporting holds Python's lock for seconds.

        Raises InputError if a package is missing, or the exported model's outputs differ from the
        release's.
        """
        if not is_installed():
            raise InputError("ONNX Runtime is not installed: pip install 'effnet-ray[onnx]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._names = [LOGITS, *([UNKNOWN] if release.references else [])]
        self._session = onnxruntime.InferenceSession(
            _exported(release.uri), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, views: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        """Logits [B, K] of views [B, R, R, 3], and how unlike the release's images each is."""
        images = np.ascontiguousarray(views.transpose(0, 3, 1, 2))
        found = self._session.run(self._names, {INPUT: images})
        logits, *unknown = map(torch.from_numpy, found)
        return logits, unknown[0] if unknown else None


def is_installed() -> bool:
    """Whether the packages are installed."""
    return all(map(importlib.util.find_spec, PACKAGES))


def _exported(uri: str) -> bytes:
    """The ONNX model of a release. Raises InputError if it cannot be made."""
    with TemporaryDirectory(prefix="effnet-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", __name__, uri, str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{uri} cannot be converted to ONNX: {error}") from error
        if ended.returncode or not path.exists():
            reason = (ended.stderr.strip().splitlines() or ["killed, or out of memory"])[-1]
            raise InputError(f"{uri} cannot be converted to ONNX: {reason}")
        return path.read_bytes()


def _main(uri: str, path: str) -> None:
    """The process of the export."""
    os.nice(NICE)
    torch.set_num_threads(1)
    try:
        Path(path).write_bytes(to_onnx(load_release(uri, "")))
    except EffnetRayError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*sys.argv[1:])
