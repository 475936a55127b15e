"""A mistake in the flags is one sentence on stderr and exit code 2, before Ray starts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.datasets import copied
from support.evaluations import no_ray
from support.servers import s3_environment

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.cli.main import main
from effnet_ray.cli.pack import pack_job
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import DatasetError
from effnet_ray.packing.pack import pack
from effnet_ray.train import run_record

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--variant", "b8"], "b0, b1, b2, b3, b4, b5, b6, b7"),
        (["--weights", "jft"], "weights 'jft' are unknown: choose one of in1k, aa, ap, ns, best"),
        (
            ["--variant", "b7", "--weights", "in1k"],
            "there are no 'in1k' weights for b7: choose one of",
        ),
        (["--image-size", "31"], "at least 32 px"),
        (["--micro-batch", "7"], "a divisor of batch_size 64"),
        (["--workers", "two"], "expected N, or MIN:MAX"),
        (["--workers", "3:2"], "with MIN at most MAX"),
        (["--workers", "4096000"], "up to 10,000"),
        (["--workers", "9" * 30], "up to 10,000"),
        (["--batch-size", "1000000000000"], "expected 1 to 1,000,000"),
        (["--epochs", "99999999999999999999"], "expected 1 to 100,000"),
        (["--image-size", "100000"], "up to 4096"),
        (["--runs", " "], "a path is empty"),
        (["--store", ""], "a path is empty"),
        (["--runs", "/"], "/ is the root of this machine's files"),
        (["--accelerator", "RTX"], "Ray has no GPU of type RTX, and its autoscaler launches none"),
        (["--accelerator", "a b", "--gpus-per-worker", "1"], "names like L4 or L4,L40S"),
        (["--learning-rate", "1e-3"], "there is no flag --learning-rate: did you mean --lr?"),
        (["--img-size=64"], "there is no flag --img-size: did you mean --image-size?"),
        (["--epochs", "0"], "expected 1 to 100,000"),
        (["--name", "a/b"], "cannot be the name of a run"),
        (["--gpus-per-worker", "1.5"], "expected 0 to 1: a worker uses one GPU"),
        (["--runs", "s3://"], "s3:// has no bucket: use s3://bucket/prefix"),
    ],
)
def test_impossible_flags_are_refused(
    refused: Refused, packed: Path, flags: list[str], says: str
) -> None:
    assert says in refused("--data", str(packed), *flags)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "expected HOST:PORT of the cluster"),
        ("ray://head:10001", "expected HOST:PORT of the cluster"),
        ("head", "expected HOST:PORT of the cluster"),
        ("127.0.0.1:9", "no cluster answers at RAY_ADDRESS 127.0.0.1:9"),
        ("127.0.0.1:99999", "no cluster answers at RAY_ADDRESS 127.0.0.1:99999"),
    ],
)
def test_a_cluster_that_is_none_is_refused(
    refused: Refused, packed: Path, monkeypatch: pytest.MonkeyPatch, address: str, says: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert says in refused("--data", str(packed), "--weights", "none")


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:9000", "http://my_store.local:9000", "http://exa mple:80", "http://[::1",
        "http://127.0.0.1:99999", "http://127.0.0.1:abc", "http://127.0.0.1:80 ",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_no_url_is_refused(refused: Refused, endpoint: str) -> None:
    with s3_environment(endpoint):
        assert f"AWS_ENDPOINT_URL is '{endpoint}': expected http(s)://" in refused(
            "--data", "s3://bucket/data"
        )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PROXY", "http://[::1", "HTTP_PROXY or HTTPS_PROXY is 'http://[::1': expected"),
        ("AWS_CA_BUNDLE", "/nowhere.pem", "AWS_CA_BUNDLE is '/nowhere.pem', which does not exist"),
    ],
)
def test_an_environment_that_reaches_no_server_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    with s3_environment("http://storage.example:9000"):
        monkeypatch.setenv(name, value)
        assert says in refused("--data", "s3://bucket/data")


def test_data_that_is_not_there_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "effnet-ray pack" in refused("--data", str(tmp_path / "nothing"))


def test_a_missing_bucket_is_named(refused: Refused, moto: str) -> None:
    with s3_environment(moto):
        assert "'no-such-bucket' does not exist" in refused("--data", "s3://no-such-bucket/data")


def test_missing_credentials_are_said(
    refused: Refused, moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_environment(moto):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        assert "AWS_ACCESS_KEY_ID" in refused("--data", "s3://some-bucket/data")


def test_a_missing_shard_is_named(refused: Refused, packed: Path, tmp_path: Path) -> None:
    data = copied(packed, tmp_path / "data")
    (data / "eval" / "00000.parquet").unlink()
    assert "eval/00000.parquet" in refused("--data", str(data), "--weights", "none")


def test_an_altered_shard_is_named(refused: Refused, packed: Path, tmp_path: Path) -> None:
    data = copied(packed, tmp_path / "data")
    shard = data / "train" / "00000.parquet"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert "SHA-256" in refused("--data", str(data), "--weights", "none")


def test_one_class_is_refused(refused: Refused, packed: Path, tmp_path: Path) -> None:
    data = copied(packed, tmp_path / "data")
    manifest = manifests.load(str(data))
    manifests.write(replace(manifest, classes=manifest.classes[:1]), str(data))
    assert "two or more" in refused("--data", str(data), "--weights", "none")


def test_a_run_reads_its_data_set_before_it_asks_for_ray(packed: Path, tmp_path: Path) -> None:
    data = copied(packed, tmp_path / "data")
    (data / "eval" / "00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"eval/00000\.parquet .* is missing"):
        finetune(
            Recipe(weights="none"), Placement(), str(data), runs=str(tmp_path), connect=no_ray
        )


def test_a_name_that_another_recipe_has_is_refused(
    refused: Refused, packed: Path, tmp_path: Path
) -> None:
    manifest = manifests.load(str(packed))
    recipe = Recipe(weights="none", lr=0.5)
    spec = recipe.variant_spec.input_spec()
    run = run_record.Run(
        name="mine",
        recipe=recipe.resolved(spec, workers=1, on_gpu=False),
        spec=spec,
        classes=manifest.classes,
        data=str(packed),
        fingerprint=manifest.fingerprint,
        weights="none",
        weights_sha256="",
        weights_head=0,
    )
    run_record.create(run, str(tmp_path / "runs" / "mine"))
    flags = ["--data", str(packed), "--runs", str(tmp_path / "runs"), "--name", "mine"]
    said = refused(*flags, "--weights", "none", "--lr", "0.1")
    assert "lr 0.1 (recorded: 0.5)" in said


def test_compiling_without_a_compiler_is_refused(
    refused: Refused, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    flags = ("--weights", "none", "--compile", "True", "--runs", str(tmp_path / "runs"))
    said = refused("--data", str(packed), *flags)
    assert "no-such-compiler is not found" in said and "may use --compile False" in said
    assert not list((tmp_path / "runs").rglob(run_record.RUN))


def test_an_unknown_release_as_weights_is_refused(refused: Refused, packed: Path) -> None:
    output = refused("--data", str(packed), "--weights", "pets@v3")
    assert (
        "there is no model pets" in output
        and "which is empty: check --store, or publish" in output
    )


def test_an_unknown_field_of_a_recipe_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    for text, says in {
        '{"epoch": 3}': ": Recipe has no field 'epoch': did you mean 'epochs'?",
        '{"learning_rate": 3}': ": Recipe has no field 'learning_rate': did you mean 'lr'?",
        '{"nested": 3}': ": Recipe has no field 'nested': expected one of variant,",
        '{"lr": "x"}': ": lr is 'x': expected a number or null",
        '{"opt": "adam"}': ": opt is 'adam': expected one of adamw,",
        '{"weights": "ra"}': ": there are no 'ra' weights for b0",
        "[1]": " is a list, in JSON: expected an object of recipe fields",
        "lr: 3": " is not JSON (line 1, column 1): expected an object",
    }.items():
        file.write_text(text)
        assert f"{file}{says}" in refused("--recipe", str(file))


def test_pack_refuses_what_it_cannot_pack(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    flags = ["--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    assert "no images" in refused(*flags, job=pack_job)
    for name in ("1.png", "2.png"):
        (tmp_path / "source" / name).write_bytes(b"1")
    assert f"2 images lie directly in {tmp_path}/source" in refused(*flags, job=pack_job)
    file = str(tmp_path / "source" / "1.png")
    says = f"{file} is a file: expected a folder, or a CSV, TSV or Parquet table"
    assert says in refused("--source", file, *flags[2:], job=pack_job)
    assert f"{file} is a file: choose a folder" in refused(*flags[:2], "--out", file, job=pack_job)


def test_a_packed_data_set_is_not_packed_again(
    refused: Refused, packed: Path, tmp_path: Path
) -> None:
    flags = ["--source", str(packed), "--out", str(tmp_path / "out")]
    assert f"{packed} is packed already: pass it as --data" in refused(*flags, job=pack_job)


def test_pack_prints_one_json_line(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(pack_job, ["--source", str(photographs), "--out", out]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    manifest = pack(str(photographs), out)
    assert line == {
        "manifest": f"{out}/manifest.json",
        "fingerprint": manifest.fingerprint,
        "images": {"train": 18, "eval": 6},
        "classes": ["dahlia", "garden", "roof"],
        "quarantined": 0,
        "seen": 24,
        "set_aside": 0,
        "report": f"{out}/report.json",
        "page": f"{out}/report.html",
    }


@pytest.mark.parametrize("width", ["1", "5", "40"])
def test_help_ends_on_any_terminal(width: str) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/models.py", "--help"], env=os.environ | {"COLUMNS": width},
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert b"usage" in done.stdout


INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupts())
runpy.run_path("jobs/finetune.py", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["effnet_ray.cli.finetune", "torch"])
def test_ctrl_c_while_modules_are_imported_is_no_error(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "--data", "nowhere"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr == "stopped; run the same command again to resume\n"


@pytest.mark.parametrize("job", ["finetune", "models"])
def test_help_prints_in_any_locale(job: str) -> None:
    program = "import sys; from effnet_ray.cli.main import run; sys.exit(run())"
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program, job, "--help"],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0 and b"usage" in done.stdout and not done.stderr
