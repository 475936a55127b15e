"""Binds the workers' collectives to the network interface of their machine's address in Ray.

Gloo listens on the address of the machine's own name, which many machines resolve to 127.0.0.1 or
127.0.1.1: workers of other machines would then connect to themselves. NCCL may choose a bridge of
containers.
"""

import os
import socket
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig


def interface_of(address: str) -> str | None:
    """The name of the interface with this IP address; None if this machine has none."""
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        for found in addresses:
            is_ip = found.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and found.address.partition("%")[0] == address:
                return name
    return None


def bind_to(address: str) -> None:
    """Make Gloo and NCCL use this address's interface, unless the environment names another."""
    name = interface_of(address)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": not a prefix


def _bind_to_node_address() -> None:
    bind_to(ray.util.get_node_ip_address())


class _BoundBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray Train has no types
    """Ray Train's backend for torch; every worker binds first."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called in Ray Train's controller when the workers of a group have started."""
        worker_group.execute(_bind_to_node_address)
        super().on_start(worker_group, backend_config)


class BoundTorchConfig(TorchConfig):  # type: ignore[misc]  # Ray Train has no types
    """Ray Train's settings for torch, with `_BoundBackend`."""

    @property
    def backend_cls(self) -> type:
        """The class that sets the process group up."""
        return _BoundBackend
