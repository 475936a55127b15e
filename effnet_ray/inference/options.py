"""Options of prediction and serving, and the checks of their values."""

import math
from dataclasses import dataclass
from typing import Literal

from effnet_ray.schema import require


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to predict for each image."""

    top: int = 5
    """Classes per image, the most probable first. 0: all classes."""
    embeddings: bool = False
    """Also write the features that the network's head reads: float16, 1,280 numbers for a b0."""
    split: str = ""
    """Split of a packed data set: train, eval or test. Default: all images."""

    def __post_init__(self) -> None:
        """Raise RecipeError if a value is out of range."""
        require(self.top >= 0, "top", self.top, "1 or more, or 0 for all classes")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The HTTP server and its replicas."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 means every address of this machine. There is no
    authentication: put a reverse proxy in front, which also limits the number of clients."""
    port: int = 8000
    """Port to listen on."""
    replicas: int = 1
    """Replicas: processes that each hold the network."""
    gpus_per_replica: float = 0
    """GPUs per replica. 0: replicas use the CPU."""
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """What computes on CPUs: onnx (ONNX Runtime in float32, about three times as fast; needs the
    extra `onnx`) or torch. auto: onnx if it is installed and the release's precision is
    float32."""
    max_batch: int = 16
    """Maximum batch size: images that go through the network together."""
    max_wait_ms: float = 5
    """Maximum time to wait for a batch to fill, ms."""
    max_megabytes: float = 20
    """Maximum size of a request in MB. Larger requests get status 413."""
    max_waiting: int = 200
    """Maximum number of images that wait in a replica, beside the batch that it computes; half as
    many, but at least a batch, wait in the proxy. Further ones get status 503."""
    max_seconds: float = 30
    """Maximum time in which an image must arrive (else status 408), and from then to its answer, s
    (else status 503, and it is not computed). Clients may ask for less time to the answer
    (x-request-timeout-seconds)."""
    top: int = 5
    """Classes in an answer, the most probable first."""

    def __post_init__(self) -> None:
        """Raise RecipeError if a value is out of range."""
        require(0 < self.port < 65536, "port", self.port, "1 to 65535")
        for name in ("replicas", "max_batch", "max_waiting", "top"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("gpus_per_replica", "max_wait_ms"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        seconds = self.max_seconds
        require(0 < seconds < math.inf, "max_seconds", seconds, "above 0")
        size = self.max_megabytes
        require(0.001 <= size <= 1024, "max_megabytes", size, "0.001 to 1024")
