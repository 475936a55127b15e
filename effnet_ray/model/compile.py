"""A network's steps through torch.compile. The network itself stays as it is."""

import os
import platform
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from effnet_ray.errors import ClusterError
from effnet_ray.model.network import Network

MOST_SHAPES = 256
"""Sizes that one network is compiled for. Beyond it torch would go on eagerly, and a resumed run,
which begins to count anew, would not."""


class Compiled(nn.Module):
    """Runs lanes of a certain number of images compiled, all others eagerly.

    A lane that is computed in parts, for want of memory, runs eagerly too.
    Which of the two depends on the lane alone, and every shape is compiled by itself: so a
    resumed run computes what it would have computed. Dropout and drop path draw as eagerly.
    """

    def __init__(self, network: Network, images: int) -> None:
        """`network` keeps its names, and is not compiled where it is used by itself."""
        super().__init__()
        self.network, self._images = network, images
        self._run: Callable[[Tensor], Tensor] = torch.compile(  # type: ignore[call-overload]
            network.forward,
            dynamic=False,
            recompile_limit=MOST_SHAPES,
            isolate_recompiles=True,
            options={"fallback_random": True},
        )

    def forward(self, shown: Tensor) -> Tensor:
        """As the network's. Raises ClusterError where it cannot be compiled."""
        if len(shown) != self._images:
            logits: Tensor = self.network(shown)
            return logits
        try:
            return self._run(shown)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = str(error).strip().splitlines()[0]
            raise ClusterError(
                f"the network cannot be compiled on {platform.node()} ({why}): install a C++ "
                "compiler (g++) on every machine that runs workers, or use --compile False"
            ) from error


def check_compiler(*, on_gpu: bool) -> None:
    """Raises ClusterError where this machine has nothing for torch.compile to compile with.

    Inductor's C++ goes by CXX, else g++ (clang++ on macOS); Triton's by CC, else clang or gcc.
    """
    own = ("clang++",) if platform.system() == "Darwin" else ("g++",)
    variable, known = ("CC", ("clang", "gcc")) if on_gpu else ("CXX", own)
    wanted = [os.environ[variable]] if os.environ.get(variable) else list(known)
    if not any(map(shutil.which, wanted)):
        raise ClusterError(
            f"compile is True, and {' or '.join(wanted)} is not found on {platform.node()}: "
            "install a C++ compiler (g++), or use --compile False"
        )
