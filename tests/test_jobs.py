"""The jobs as people run them: processes, flags, exit codes, the last line of stdout."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.jobs import answer, job
from support.laws import RECIPE, STEPS, await_step, train_workers
from support.plain_run import PlainRun
from support.runs import assert_once_each, audit, planned, weights

from effnet_ray.train import run_record

pytestmark = pytest.mark.ray


FLAGS = ["--local", "--workers", "2", "--audit", "--checkpoint-every", "2", "--name", "killed"]


@pytest.mark.long
def test_resume_after_a_killed_driver_equals_never_stopping(
    undisturbed: Callable[[int], PlainRun], digits: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(asdict(RECIPE)))
    where = ["--recipe", str(recipe), "--data", digits, "--runs", f"{tmp_path}/runs"]
    where += ["--store", f"{tmp_path}/store"]
    kill_at(STEPS + 1, tmp_path / "runs/killed/audit", job("finetune", *FLAGS, *where))
    answered = answer(job("finetune", *FLAGS, *where))
    assert 0 < answered["resumed_from_step"] < 2 * STEPS
    result = run_record.load_result(answered["run_uri"])
    assert result is not None
    assert weights(result) == weights(undisturbed(2).finished)
    assert_once_each(result, planned(digits))
    assert audit(result) == audit(undisturbed(2).finished)
    assert_the_contract_holds(answered, tmp_path)
    again = answer(job("finetune", *FLAGS, *where))
    assert again == answered  # reported, not redone


def kill_at(step: int, audit_folder: Path, driver: subprocess.Popen[str]) -> None:
    """SIGKILL a job's driver; its workers are held, since they may outlive it by some steps."""
    await_step(audit_folder, 0)
    workers = train_workers(psutil.Process(driver.pid))
    await_step(audit_folder, step)
    for worker in workers:
        worker.suspend()
    driver.kill()
    driver.communicate()
    for worker in workers:
        worker.kill()


def assert_the_contract_holds(answered: dict[str, Any], tmp_path: Path) -> None:
    """JSON keys, and a release that timm loads by itself."""
    import timm

    assert {
        "run", "release", "release_uri", "eval_top1", "eval_loss", "epochs", "steps",
        "resumed_from_step", "train_images_per_s", "seconds",
    } <= set(answered)  # fmt: skip
    assert answered["release"] == "killed@v1"
    assert answered["release_uri"] == f"{tmp_path}/store/killed/v0001"
    files = {path.name for path in Path(answered["release_uri"]).iterdir()}
    assert files == {
        "model.safetensors", "config.json", "recipe.json", "metrics.json", "README.md",
        "release.json", "curves.png",
    }  # fmt: skip
    model = timm.create_model(f"local-dir:{answered['release_uri']}", pretrained=True)
    assert model.num_classes == 10
    assert list(model.pretrained_cfg["label_names"]) == [str(digit) for digit in range(10)]


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_run_in_one_sentence(digits: str, tmp_path: Path, sent: int) -> None:
    flags = ["--local", "--epochs", "50", "--data", digits, "--audit", "--name", "stopped"]
    driver = job("finetune", *flags, "--runs", f"{tmp_path}/runs", "--store", f"{tmp_path}/store")
    await_step(tmp_path / "runs/stopped/audit", 3)
    driver.send_signal(sent)
    out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (130, ""), err
    assert err.endswith("stopped; run the same command again to resume\n")
    assert "Traceback" not in err and "received" not in err


TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
import ray
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR")
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import main
code = main(finetune_job, sys.argv[1:])
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.long
def test_local_folders_on_two_nodes_are_refused(digits: str, tmp_path: Path) -> None:
    folders = ["--runs", str(tmp_path / "runs"), "--store", str(tmp_path / "store")]
    flags = ["--data", digits, "--weights", "none", *folders]
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "the cluster has 2 nodes: use an s3:// URI" in done.stderr
    assert not list((tmp_path / "runs").rglob("*"))  # nothing is settled by what cannot run
