"""Options of predicting and serving."""

import math
from dataclasses import dataclass

from effnet_ray.schema import require


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What is written of each image."""

    top: int = 5
    """Classes named for each image, the likeliest first; 0: all of them."""
    embeddings: bool = False
    """Also what the network's head sees: float16, 1,280 numbers of a b0."""
    split: str = ""
    """Of a data set of `jobs/pack.py`: train, eval or test; not given: all images."""

    def __post_init__(self) -> None:
        """Raises RecipeError for what cannot be."""
        require(self.top >= 0, "top", self.top, "1 or more, or 0 for all classes")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How it is served."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: every one of this machine. There are no passwords: put a
    proxy before it, which also bounds how many may ask at once."""
    port: int = 8000
    """To listen at."""
    replicas: int = 1
    """Processes that each hold the network."""
    gpus_per_replica: float = 0
    """GPUs of each; 0: it computes on CPUs."""
    max_batch: int = 16
    """Images that go through the network together, at most."""
    max_wait_ms: float = 5
    """Milliseconds that an image waits for others."""
    max_megabytes: float = 20
    """MB of a request, at most: larger ones are answered 413."""
    max_waiting: int = 200
    """Requests that may wait for a replica, at most: others are answered 503."""
    top: int = 5
    """Classes named in an answer, the likeliest first."""

    def __post_init__(self) -> None:
        """Raises RecipeError for what cannot be."""
        require(0 < self.port < 65536, "port", self.port, "1 to 65535")
        for name in ("replicas", "max_batch", "max_waiting", "top"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("gpus_per_replica", "max_wait_ms"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        most = self.max_megabytes
        require(0.001 <= most <= 1024, "max_megabytes", most, "0.001 to 1024")
