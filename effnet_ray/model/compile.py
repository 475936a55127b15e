"""torch.compile for a network's training steps."""

import os
import platform
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from effnet_ray.errors import ClusterError
from effnet_ray.model.network import Network

MAX_SHAPES = 256
"""Input shapes for which a network may be compiled. Beyond this limit torch would run eagerly;
a resumed run counts from zero and would not, so the limit must never be reached."""


class Compiled(nn.Module):
    """Runs lanes (micro-batches) of a fixed size compiled, and all other inputs eagerly.

    A lane that is split for want of memory also runs eagerly. The choice depends on the lane
    alone, and each shape is compiled independently, so a resumed run computes the same numbers.
    Dropout and drop path draw the same random numbers as in eager mode.
    """

    def __init__(self, network: Network, images: int) -> None:
        """`images`: the size of a lane. `network` itself is not changed."""
        super().__init__()
        self.network, self._images = network, images
        self._run: Callable[[Tensor], Tensor] = torch.compile(  # type: ignore[call-overload]
            network.forward,
            dynamic=False,
            recompile_limit=MAX_SHAPES,
            isolate_recompiles=True,
            options={"fallback_random": True},
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's logits. Raises ClusterError if compiling fails."""
        if len(inputs) != self._images:
            logits: Tensor = self.network(inputs)
            return logits
        try:
            return self._run(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ClusterError(
                f"the network cannot be compiled on {platform.node()} ({reason}): install a C++ "
                "compiler (g++) on every machine that runs workers, or use --compile False"
            ) from error


def compiler_works() -> bool:
    """Whether torch.compile can compile a small function for this machine's CPU.

    A compiler alone does not suffice: Python's headers may be missing, or OpenMP.
    """
    try:
        check_compiler(on_gpu=False)
        compiled = torch.compile(lambda x: x.sin() + 1)
        with torch.no_grad():
            compiled(torch.ones(8))
    except (ClusterError, RuntimeError, OSError):  # TorchDynamoException is a RuntimeError
        return False
    return True


def check_compiler(*, on_gpu: bool) -> None:
    """Raise ClusterError if this machine has no compiler for torch.compile.

    Inductor's C++ backend uses CXX, or g++ (clang++ on macOS); Triton uses CC, or clang or gcc.
    """
    cxx = ("clang++",) if platform.system() == "Darwin" else ("g++",)
    variable, defaults = ("CC", ("clang", "gcc")) if on_gpu else ("CXX", cxx)
    compilers = [os.environ[variable]] if os.environ.get(variable) else list(defaults)
    if not any(map(shutil.which, compilers)):
        raise ClusterError(
            f"compile is True, but {' or '.join(compilers)} is not found on {platform.node()}: "
            "install a C++ compiler (g++); a new run may use --compile False"
        )
