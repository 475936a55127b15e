"""A local folder is used on a cluster only where every machine has it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effnet_ray.errors import ClusterError
from effnet_ray.runtime import nodes, shared_folders
from effnet_ray.runtime.nodes import Machine

ROOT = Path(__file__).parents[1]

CLUSTER = """
import os, signal, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from effnet_ray.errors import ClusterError
from effnet_ray.runtime import nodes, shared_folders

folder, alone = sys.argv[1:]
head = {"num_cpus": 1, "include_dashboard": False}
machines = Cluster(initialize_head=True, head_node_args=head)
second = machines.add_node(num_cpus=1)
ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")

def check(uri):
    try:
        shared_folders.check_reachable([uri])
        print("shared", sorted(os.listdir(uri)))
    except ClusterError as error:
        print(error)

check(folder)
ray_start = f"{sys.executable} -m ray.scripts.scripts start --address {machines.address}"
command = f"mount -t tmpfs none {alone} && exec {ray_start} --num-cpus 1 --block"
other = subprocess.Popen(["unshare", "--mount", "sh", "-c", command],
                         start_new_session=True, stdout=subprocess.DEVNULL)
try:
    while other.poll() is None and len([node for node in ray.nodes() if node["Alive"]]) < 3:
        time.sleep(0.1)
    check(folder)
    check(alone)
    before, now = [nodes.alive_nodes()], nodes.alive_nodes
    machines.remove_node(second)
    while len(now()) > 2:
        time.sleep(0.1)
    nodes.alive_nodes = lambda: before.pop() if before else now()
    check(folder)
finally:
    os.killpg(other.pid, signal.SIGTERM)
    other.wait()
    ray.shutdown()
    machines.shutdown()
"""


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_folder_is_shared_where_every_machine_reads_the_same_file(tmp_path: Path) -> None:
    """The third machine is a raylet in a mount namespace, where another folder lies on `alone`.

    At last the second one leaves after machines were listed, and is not asked.
    """
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mount namespaces need root and `unshare`")
    (tmp_path / "shared").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared/manifest.json").write_text("{}")
    folders = [str(tmp_path / name) for name in ("shared", "alone")]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, *folders], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    *shared, refused, after = done.stdout.splitlines()
    assert [*shared, after] == ["shared ['manifest.json']"] * 3
    assert refused.startswith(f"{folders[1]} is a local folder that ")
    assert refused.endswith("use an s3:// URI, or a folder that all machines mount")


@pytest.mark.quick
def test_machines_that_do_not_run_yet_need_the_users_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "alive_nodes", lambda: [Machine("head", {"CPU": 0})])
    monkeypatch.setattr(nodes, "launchable", lambda: [Machine("gpu", {"GPU": 1})])
    shared_folders.check_reachable(["s3://bucket/data"])
    with pytest.raises(ClusterError, match=r"/fsx/data is a local folder, and the autoscaler may"):
        shared_folders.check_reachable(["/fsx/data"])
    monkeypatch.setenv(shared_folders.SHARED_ENV, "/nfs:/fsx")
    shared_folders.check_reachable(["/fsx/data"])
    with pytest.raises(ClusterError, match="/fsx2/data is a local folder"):
        shared_folders.check_reachable(["/fsx2/data"])


@pytest.mark.quick
def test_a_folder_that_is_still_to_be_made_is_tried_in_its_parent(tmp_path: Path) -> None:
    path, content, temporary = shared_folders._probe_file(tmp_path / "new/runs")
    assert path.parent == tmp_path and path.read_bytes() == content and temporary
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.quick
def test_what_a_killed_driver_left_in_a_folder_is_deleted_by_a_later_one(tmp_path: Path) -> None:
    old, young, own = (tmp_path / f"{shared_folders.PROBE}{number}" for number in range(3))
    for file in (old, young, own, tmp_path / "manifest.json"):
        file.write_bytes(b"")
    hours_ago = time.time() - 2 * shared_folders.STALE_S
    os.utime(old, (hours_ago, hours_ago))
    os.utime(tmp_path / "manifest.json", (hours_ago, hours_ago))
    path, _, _ = shared_folders._probe_file(tmp_path)
    assert {*tmp_path.iterdir()} == {young, own, path, tmp_path / "manifest.json"}


@pytest.mark.quick
def test_in_a_read_only_folder_an_existing_file_is_compared() -> None:
    path, content, temporary = shared_folders._probe_file(Path("/proc/sys/vm"))
    assert path.read_bytes() == content != b"" and not temporary
