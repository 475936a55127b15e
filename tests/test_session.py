"""What a run asks of a cluster, and what no cluster could give."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest

from effnet_ray import Placement
from effnet_ray.errors import ClusterError
from effnet_ray.runtime import session
from effnet_ray.train.ray_trainer import POLL_INTERVAL_ENV, poll_interval

BEFORE = os.environ.get(session.DASHBOARD_ENV)
pytestmark = pytest.mark.ray


def test_gpus_that_the_cluster_lacks_are_refused(cluster: None) -> None:
    says = (
        "not enough resources for 2 workers with 1 CPU and 1 GPU each: this cluster has room for "
        "0, and its autoscaler cannot launch"
    )
    with pytest.raises(ClusterError, match=says):
        session.request_resources(Placement(workers="2", gpus_per_worker=1), [])


def test_more_workers_than_cores_share_one_machine(cluster: None) -> None:
    requested = session.request_resources(Placement(workers="6"), [])
    assert requested.workers == 6
    assert 6 * requested.resources_per_worker["CPU"] <= 3
    assert requested.backend == session.GLOO


def test_a_range_of_workers_is_elastic(cluster: None) -> None:
    assert session.request_resources(Placement(workers="1:3"), []).workers == (1, 3)


def test_gpus_of_another_kind_than_the_clusters_are_refused(cluster: None) -> None:
    with pytest.raises(
        ClusterError, match=r"1 worker with 1 CPU and 0.5 GPU \(L4 or L40S\): this"
    ):
        wanted = Placement(workers="1", gpus_per_worker=0.5, accelerator="L4,L40S")
        session.request_resources(wanted, [])


def test_processes_of_a_ray_without_a_dashboard_ask_nobodys(cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def output() -> str:
        return os.environ[session.DASHBOARD_ENV]

    with socket.socket() as asking, pytest.raises(ConnectionRefusedError):
        url = urlparse(ray.get(output.remote()))
        asking.connect((url.hostname, url.port))
    assert os.environ.get(session.DASHBOARD_ENV) == BEFORE


def test_a_local_ray_starts_no_process_that_nobody_needs(cluster: None) -> None:
    import ray
    from ray.data._internal.usage.collector import usage_collection_disabled
    from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR

    @ray.remote(num_cpus=0)
    def settings() -> tuple[bool, str]:
        return usage_collection_disabled(), os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR]

    assert ray.get(settings.remote()) == (True, "0")
    assert ENABLE_PREEMPTION_WATCHER_ENV_VAR not in os.environ


@pytest.mark.parametrize("said", [None, "7"])
def test_how_often_workers_are_looked_at_is_the_users_if_they_say_it(
    monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.delenv(POLL_INTERVAL_ENV, raising=False)
    if said:
        monkeypatch.setenv(POLL_INTERVAL_ENV, said)
    for workers, ours in ((2, "0.2"), (64, "1")):
        with poll_interval(workers):
            assert os.environ[POLL_INTERVAL_ENV] == (said or ours)
            with poll_interval(2):
                assert os.environ[POLL_INTERVAL_ENV] == (said or ours)
        assert os.environ.get(POLL_INTERVAL_ENV) == said


ASKS = """
import os, ray
from effnet_ray.runtime import session

session.start_local(1, dashboard=True, log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
class Asking:
    def state(self):
        from ray.util.state import get_actor
        return get_actor(ray.get_runtime_context().get_actor_id(), timeout=60).state

print(ray.get(Asking.remote().state.remote()), os.environ["RAY_API_SERVER_ADDRESS"])
"""


@pytest.mark.long
def test_a_ray_of_our_own_asks_its_own_dashboard_whatever_the_user_submits_to() -> None:
    others = "http://127.0.0.1:1"
    requested = subprocess.run(
        [sys.executable, "-c", ASKS],
        env=os.environ | {"RAY_API_SERVER_ADDRESS": others},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert requested.stdout.split() == ["ALIVE", others]


ENDS = """
import os, signal, sys, time
from effnet_ray import Placement
from effnet_ray.cli.main import main
from effnet_ray.runtime import session

def job(_):
    session.connect(Placement(workers="1"), local=True, verbose=False)
    try:
        os.kill(int(sys.argv[1]) and os.getpid(), signal.SIGTERM)  # 0: to the process group
        time.sleep(60)
    finally:
        time.sleep(4)  # Ray's own handler would abort the process after 3 s

sys.exit(main(job, []))
"""


@pytest.mark.parametrize("alone", [True, False])
def test_a_job_that_is_terminated_ends_as_by_ctrl_c_and_in_its_own_time(alone: bool) -> None:
    """Also if its whole process group is, as `timeout` and a shell's `kill %1` do."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, str(int(alone))],
        capture_output=True, text=True, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "stopped; run the same command again to resume\n"


def test_ray_that_cannot_start_is_said_in_one_sentence(tmp_path: Path) -> None:
    program = (
        "from effnet_ray import Placement\nfrom effnet_ray.errors import ClusterError\n"
        "from effnet_ray.runtime import session\n"
        "try:\n    session.connect(Placement(), local=True, verbose=False)\n"
        "except ClusterError as error:\n    print(error)\n"
    )
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    environment = os.environ | {"RAY_TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("Ray cannot start (")
    assert "set RAY_TMPDIR to a folder with a shorter path" in done.stdout
    assert "Traceback" not in done.stderr
