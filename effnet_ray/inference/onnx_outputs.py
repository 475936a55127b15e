"""A release's outputs by ONNX Runtime: on a CPU about three times as fast as torch."""

import importlib.util
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effnet_ray.errors import EffnetRayError, InputError, quote_end
from effnet_ray.inference.export import INPUT, OUTPUTS, to_onnx
from effnet_ray.release.load import LoadedRelease, load_release

LOGITS, _, UNKNOWN = OUTPUTS
PACKAGES = "onnx", "onnxruntime", "onnxscript"
"""Those of the extra `onnx`."""
TIMEOUT_S = 600
"""The export of a b0 takes 4 s, and its process 10 s. Chosen for larger ones, not measured."""
NICE = 5
"""The process of the export gives way to the requests that are answered meanwhile."""


class OnnxOutputs:
    """Computes logits and scores of unknown pictures, in float32 on one CPU core."""

    def __init__(self, release: LoadedRelease) -> None:
        """Export the release in another process: exporting holds Python's lock for seconds.

        Raises InputError if a package is missing or fails, or the exported model's outputs differ
        from the release's.
        """
        if not is_installed():
            raise InputError("ONNX Runtime is not installed: pip install 'effnet-ray[onnx]'")
        self._names = [LOGITS, *([UNKNOWN] if release.references else [])]
        try:
            self._session = _session(_exported(release.uri))
        except Exception as error:  # onnxruntime has no common class of its errors
            raise InputError(
                f"ONNX Runtime cannot be used ({quote_end(error)}): pass --runtime torch"
            ) from error

    def __call__(self, views: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        """Logits [B, K] of views [B, R, R, 3], and how unlike the release's images each is."""
        images = np.ascontiguousarray(views.transpose(0, 3, 1, 2))
        found = self._session.run(self._names, {INPUT: images})
        logits, *unknown = map(torch.from_numpy, found)
        return logits, unknown[0] if unknown else None


def is_installed() -> bool:
    """Whether the packages are installed."""
    return all(map(importlib.util.find_spec, PACKAGES))


def _session(model: bytes) -> Any:
    """A session of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _exported(uri: str) -> bytes:
    """The ONNX model of a release. Raises InputError if it cannot be made."""
    command = [sys.executable, "-m", __name__, uri]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # The process ends when this pipe does: with this process, however that ends.
    until, alive = os.pipe()
    try:
        ended = subprocess.run(
            command, env=environment, stdin=until, capture_output=True, timeout=TIMEOUT_S
        )
    finally:
        os.close(until)
        os.close(alive)
    if ended.returncode or not ended.stdout:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "killed, or out of memory"
        raise InputError(f"{uri} cannot be converted to ONNX: {reason}")
    return ended.stdout


def _main(uri: str) -> None:
    """The process of the export: writes the model to stdout."""
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for what libraries print
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICE)
    torch.set_num_threads(1)
    try:
        model = to_onnx(load_release(uri, ""))
    except EffnetRayError as error:
        sys.exit(str(error))
    with open(output, "wb") as file:
        file.write(model)


def _end_with_parent() -> None:
    """End this process when the other end of stdin is closed."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
