"""Collectives use the network interface of the machine's address in Ray."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from effnet_ray.train.network_interface import bind_to, interface_of

ADDRESSES = ("10.213.7.1", "10.213.7.2")
WORKER = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from effnet_ray.train.network_interface import bind_to
rank, address, master = int(sys.argv[1]), sys.argv[2], sys.argv[3]
bind_to(address)
dist.init_process_group("gloo", init_method=f"tcp://{master}:29517", rank=rank, world_size=2,
                        timeout=timedelta(seconds=30))
total = torch.tensor(rank + 1)
dist.all_reduce(total)
print(int(total))
"""


def test_an_address_has_the_interface_that_lists_it() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family.name == "AF_INET":
                assert interface_of(address.address) == name
    assert interface_of("203.0.113.9") is None


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    bind_to("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen"
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={interface_of('127.0.0.1')}"
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    bind_to("203.0.113.9")
    assert "NCCL_SOCKET_IFNAME" not in os.environ


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other at ADDRESSES."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and `ip`")
    names = (f"effnet{os.getpid()}a", f"effnet{os.getpid()}b")
    links = (f"ef{os.getpid()}a", f"ef{os.getpid()}b")
    commands = [
        *(f"netns add {name}" for name in names),
        f"link add {links[0]} netns {names[0]} type veth peer name {links[1]} netns {names[1]}",
        *(
            f"-n {name} {rest}"
            for name, link, address in zip(names, links, ADDRESSES, strict=True)
            for rest in (
                f"addr add {address}/24 dev {link}",
                f"link set {link} up",
                "link set lo up",
            )
        ),
    ]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: ip {command}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_workers_of_two_machines_reach_each_other(machines: tuple[str, str]) -> None:
    """Also where both machines resolve their own name to a loopback address."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    env = {name: value for name, value in env.items() if not name.endswith("_SOCKET_IFNAME")}
    workers = [
        subprocess.Popen(
            ["ip", "netns", "exec", machine, sys.executable, "-c", WORKER, str(rank), address,
             ADDRESSES[0]],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, (machine, address) in enumerate(zip(machines, ADDRESSES, strict=True))
    ]  # fmt: skip
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert output.split() == ["3"], errors


@pytest.mark.ray
def test_ray_trains_workers_are_bound_before_their_group_starts(
    cluster: None, tmp_path: Path
) -> None:
    import ray.util
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from effnet_ray.train.network_interface import BoundTorchConfig

    def write_interface(config: dict[str, str]) -> None:
        import ray.train
        import torch.distributed as dist

        assert dist.is_initialized()
        rank = ray.train.get_context().get_world_rank()
        Path(config["folder"], f"{rank}").write_text(os.environ.get("GLOO_SOCKET_IFNAME", ""))

    TorchTrainer(
        write_interface,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        torch_config=BoundTorchConfig(backend="gloo"),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    expected = interface_of(ray.util.get_node_ip_address())
    assert [(tmp_path / rank).read_text() for rank in "01"] == [expected, expected]
