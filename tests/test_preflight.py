"""The preflight finds what would end a run later, and leaves nothing behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from ray._private.runtime_env import packaging
from support.evaluations import no_ray
from support.servers import s3_environment

from effnet_ray import storage
from effnet_ray.cli.check import check_job
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import main
from effnet_ray.data import manifest as manifests
from effnet_ray.placement import Placement
from effnet_ray.preflight.cluster import check_memory
from effnet_ray.preflight.findings import Finding, all_right
from effnet_ray.preflight.inputs import check_inputs
from effnet_ray.preflight.permissions import check_places
from effnet_ray.preflight.preflight import all_checks
from effnet_ray.preflight.working_dir import check_working_dir, uploaded_files
from effnet_ray.recipe import Recipe
from effnet_ray.train import run_record

ROOT = Path(__file__).parents[1]
SCRATCH = Recipe(weights="none")


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in findings}


# --- places


@pytest.mark.parametrize("single_writer", [False, True])
def test_places_are_tried_and_nothing_is_left_there(s3: str, single_writer: bool) -> None:
    uris = (s3, f"{s3}/runs", f"{s3}/store")
    result = by_name(check_places(*uris, single_writer=single_writer))
    if not result["store"].ok:
        assert not single_writer and "--single-writer" in result.pop("store").found
        result |= by_name(check_places(*uris, single_writer=True))
    assert all_right(result.values()) and set(result) == {"S3 credentials", "runs", "store"}
    assert result["S3 credentials"].found.startswith("env, for http://")
    bucket = s3.rpartition("/")[0]
    assert storage.backend_of(bucket).entries(bucket) == {}  # hidden ones too


def test_the_way_of_signing_is_told_but_never_the_key(rclone: str) -> None:
    with s3_environment(rclone, key="AKIAWRONG", secret="wrong"):
        result = by_name(check_places("s3://any/data", "s3://any/runs", "s3://any/store"))
    assert result["S3 credentials"].ok and not result["runs"].ok and not result["store"].ok
    assert "WRONG" not in result["S3 credentials"].found
    with s3_environment(rclone, key=None, secret=None):
        result = by_name(check_places("s3://any/data", "s3://any/runs", "s3://any/store"))
    assert not result["S3 credentials"].ok and "AWS_PROFILE" in result["S3 credentials"].do
    assert "no usable S3 credentials" in result["store"].found


def test_a_place_that_cannot_be_written_is_named_with_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = by_name(check_places(str(tmp_path), str(tmp_path), str(tmp_path / "file/store")))
    assert set(result) == {"runs", "store"} and result["runs"].ok
    assert f"releases cannot be stored at {tmp_path}/file/store" in result["store"].found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- what a run begins with


def test_data_and_weights_are_looked_at_as_a_run_does(digits: str) -> None:
    result = by_name(check_inputs(SCRATCH, digits, None))
    assert all_right(result.values())
    assert "1,438 train and 359 eval images of 10 classes" in result["data"].found
    assert "8×8 px" in result["first image"].found and "scratch" in result["weights"].found


def test_what_is_missing_or_damaged_is_said_and_the_rest_is_looked_at(
    digits: str, tmp_path: Path
) -> None:
    result = by_name(check_inputs(Recipe(), str(tmp_path), str(tmp_path)))
    assert not any(each.ok for each in result.values())
    assert "effnet-ray pack" in result["data"].found
    assert f"weights {tmp_path}/tf_efficientnet_b0.ns_jft_in1k" in result["weights"].found
    damaged = tmp_path / "damaged"
    shutil.copytree(digits, damaged)
    shard = next(damaged.glob("train/*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = by_name(check_inputs(SCRATCH, str(damaged), None))
    assert "SHA-256 does not match the manifest" in result["data"].found and result["weights"].ok


# --- the working dir


def test_of_the_working_dir_counts_what_ray_would_pack(tmp_path: Path) -> None:
    for name in ("jobs/a.py", "data/a.jpg", "b.pt", ".git/config", ".venv/x", "more/big"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    (tmp_path / ".rayignore").write_text("/data\n*.pt\n")
    (tmp_path / "more/.gitignore").write_text("big\n")
    files = {".rayignore", "jobs/a.py", "more/.gitignore"}
    assert set(uploaded_files(tmp_path)) == files
    result = by_name(check_working_dir(tmp_path, submits=True))
    size = sum(path.stat().st_size for path in map(tmp_path.joinpath, files)) / 1e6
    assert all_right(result.values()) and f"3 files, {size:.1f} MB" in result["working dir"].found


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        "prod.env",
        "keys/my.pem",
        "tls.key",
        ".aws/credentials",
        ".ssh/mine",
        ".git-credentials",
        "id_rsa",
    ],
)
def test_keys_in_a_working_dir_that_is_submitted_are_wrong(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("secret")
    result = by_name(check_working_dir(tmp_path, submits=True))["working dir secrets"]
    assert not result.ok and name.split("/")[0] in result.found and ".rayignore" in result.do
    assert "secret" not in result.found
    remarked = by_name(check_working_dir(tmp_path, submits=False))["working dir secrets"]
    assert remarked.ok and remarked.do
    (tmp_path / ".rayignore").write_text(f"{name}\n")
    assert (
        by_name(check_working_dir(tmp_path, submits=True))["working dir secrets"].found == "none"
    )


def test_a_working_dir_too_large_for_ray_and_runs_in_it_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r/checkpoints").mkdir(parents=True)
    for step in range(9):
        (tmp_path / f"r/checkpoints/{step}").write_bytes(bytes(1000))
    result = by_name(check_working_dir(tmp_path, submits=True))["working dir"]
    assert result.ok and result.found.endswith("; r/checkpoints") and result.do
    monkeypatch.setattr(packaging, "GCS_STORAGE_MAX_SIZE", 8000)
    assert not by_name(check_working_dir(tmp_path, submits=True))["working dir"].ok


def test_our_own_repository_travels_light() -> None:
    assert sum(uploaded_files(ROOT).values()) < 5e6
    assert all_right(check_working_dir(ROOT, submits=True))


# --- accelerators


@pytest.mark.parametrize(
    ("variant", "micro", "accelerator", "fits"),
    [
        ("b0", 384, "L4", True),  # what timm measured on 24 GB
        ("b0", 385, "L4", False),
        ("b7", 8, "L4", True),
        ("b7", 8, "T4", False),
        ("b7", 16, "L40S", True),
        ("b7", 26, "H100", True),
        ("b7", 27, "H100", False),
        ("b7", 99, "a new one", True),
    ],
)
def test_the_micro_batch_is_held_against_the_accelerators_memory(
    variant: str, micro: int, accelerator: str, fits: bool
) -> None:
    recipe = Recipe(variant=variant, weights="none", batch_size=micro, micro_batch=micro)
    recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=True)
    assert check_memory(recipe, accelerator).ok is fits
    assert bool(check_memory(recipe, accelerator).do) is not fits


def test_float32_and_a_shared_gpu_hold_half() -> None:
    recipe = Recipe(variant="b7", weights="none", batch_size=8)
    recipe = replace(recipe, image_size=600, micro_batch=8, precision="bfloat16")
    assert check_memory(recipe, "L4").ok and not check_memory(recipe, "L4", share=0.5).ok
    assert not check_memory(replace(recipe, precision="float32"), "L4").ok


# --- the jobs


def test_a_run_that_could_not_publish_is_refused_before_it_begins(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    where = ["--data", digits, "--runs", f"{tmp_path}/runs", "--store", f"{tmp_path}/file/store"]
    assert main(finetune_job, ["--local", *where]) == 2
    assert "store: releases cannot be stored at" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("new", "runs/new is new"),
        (None, "is new"),
        ("a/b", "'a/b' cannot be the name of a run"),
        ("other", "run 'other' exists with another recipe: got lr 0.1 (recorded: 0.5)"),
        ("same", "runs/same exists: resume it"),
    ],
)
def test_the_check_looks_at_the_name_of_the_run(
    packed: Path, tmp_path: Path, name: str | None, says: str
) -> None:
    manifest, runs = manifests.load(str(packed)), f"{tmp_path}/runs"
    wanted = Recipe(weights="none", lr=0.1)
    spec = wanted.variant_spec.input_spec()
    for recorded, recipe in {"other": replace(wanted, lr=0.5), "same": wanted}.items():
        run = run_record.Run(
            name=recorded,
            recipe=recipe.resolved(spec, workers=1, on_gpu=False),
            spec=spec,
            classes=manifest.classes,
            data=str(packed),
            fingerprint=manifest.fingerprint,
            weights="none",
            weights_sha256="",
            weights_head=0,
        )
        run_record.create(run, f"{runs}/{recorded}")
    findings = all_checks(
        wanted,
        Placement(),
        data=str(packed),
        runs=runs,
        store=f"{tmp_path}/store",
        mirror=None,
        name=name,
        trackers=(),
        single_writer=False,
        submits=False,
        connect=no_ray,
    )
    result = next(each for each in findings if each.check == "run")
    assert result.ok == (name in (None, "new", "same")) and says in result.found


@pytest.mark.ray
def test_the_check_looks_at_everything_a_run_needs_and_exits_by_it(
    cluster: None, digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", digits, "--runs", f"{tmp_path}/runs", "--store", f"{tmp_path}/store"]
    assert main(check_job, ["--local", *where]) == 0
    out, err = capsys.readouterr()
    output = json.loads(out)
    names = [each["check"] for each in output["findings"]]
    assert output["ok"] is True and err.rstrip().endswith("checks passed")
    assert names == ["runs", "store", "data", "first image", "weights", "run", "working dir",
                     "working dir secrets", "recipe", "versions", "workers"]  # fmt: skip
    assert main(check_job, ["--local", *where, "--gpus-per-worker", "1"]) == 1
    out, err = capsys.readouterr()
    wrong = [each for each in json.loads(out)["findings"] if not each["ok"]]
    assert [each["check"] for each in wrong] == ["workers"] and "cannot launch machines" in err


OTHER_VERSION = """
import sys
import ray
from ray.cluster_utils import Cluster
from effnet_ray.preflight.cluster import check_cluster
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe

head = {"num_cpus": 2, "include_dashboard": False}
machines = Cluster(initialize_head=True, head_node_args=head)
machines.add_node(num_cpus=1, env_vars={"PYTHONPATH": sys.argv[1]})
ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
recipe = Recipe(weights="none")
recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=2, on_gpu=False)
for each in check_cluster(recipe, Placement(workers="2"), ["s3://a", "s3://b", "s3://c"]):
    print(each.ok, each.message)
ray.shutdown()
machines.shutdown()
"""


@pytest.mark.ray
@pytest.mark.long
def test_a_machine_with_other_versions_is_named(tmp_path: Path) -> None:
    other = tmp_path / "timm-9.9.dist-info/METADATA"
    other.parent.mkdir()
    other.write_text("Metadata-Version: 2.1\nName: timm\nVersion: 9.9\n")
    done = subprocess.run(
        [sys.executable, "-c", OTHER_VERSION, f"{tmp_path}:{ROOT}"],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert (
        said[0].startswith("False versions: ") and "has timm 9.9, but the driver has 1." in said[0]
    )
    assert said[1].startswith("True workers: 2 workers with 1 CPU each: all fit on")
