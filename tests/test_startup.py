"""The command `effnet-ray`, and what its commands import."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from effnet_ray import __version__
from effnet_ray.cli import all_jobs, main

ROOT = Path(__file__).parent.parent

HEAVY = (
    "torch torchvision timm ray pandas numpy pyarrow s3fs fsspec aiohttp botocore sklearn scipy "
    "matplotlib PIL cv2 jinja2 safetensors huggingface_hub mlflow tensorboard optuna onnx"
).split()

RUN = """
import json, sys
from contextlib import suppress
from effnet_ray.cli import main
with suppress(SystemExit):
    main.main(main.load_job(sys.argv[1]), json.loads(sys.argv[2]))
heavy = set(json.loads(sys.argv[3])) & sys.modules.keys()
print("HEAVY", sorted(heavy))
"""


def heavy_imports(job: str, *flags: str) -> tuple[str, str]:
    """The output of a job in a fresh process, and the heavy modules it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, job, json.dumps(flags), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    output, _, heavy = done.stdout.rpartition("HEAVY ")
    assert heavy, done.stderr
    return output + done.stderr, heavy.strip()


@pytest.mark.parametrize("job", main.JOBS)
def test_help_imports_nothing_heavy(job: str) -> None:
    output, heavy = heavy_imports(job, "--help")
    assert "usage:" in output and heavy == "[]"


@pytest.mark.parametrize(
    ("job", "flags", "says"),
    [
        ("finetune", ["--epoch", "3"], "--epochs"),
        ("finetune", ["--variant", "b8"], "b0, b1, b2"),
        ("tune", ["--objective", "speed"], "choose accuracy"),
        (
            "predict",
            ["--top", "-1", "--model", "a@v1", "--source", "s", "--out", "o"],
            "top is -1",
        ),
        ("models", ["lisst"], "list"),
    ],
)
def test_a_refused_flag_imports_nothing_heavy(job: str, flags: list[str], says: str) -> None:
    output, heavy = heavy_imports(job, *flags)
    assert says in output and heavy == "[]"


def test_listing_a_local_store_imports_nothing_heavy(tmp_path: Path) -> None:
    output, heavy = heavy_imports("models", "list", "--store", str(tmp_path))
    assert f"no releases in {tmp_path}" in output and heavy == "[]"


# --- effnet-ray


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[str, object]:
    """Output and exit code of the installed command."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["effnet-ray"].partition(":")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/effnet-ray", *arguments])
    try:
        code: object = getattr(import_module(module), function)()
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return captured.out + captured.err, code or 0


@pytest.mark.parametrize("job", main.JOBS)
def test_a_subcommand_has_the_help_of_its_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    subcommand, code = run(capsys, monkeypatch, job, "--help")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(f"jobs/{job}.py", run_name="__main__")
    script = capsys.readouterr().out
    assert code == 0 and not end.value.code
    assert f"usage: effnet-ray {job} " in subcommand and f"usage: jobs/{job}.py " in script
    assert set(re.findall(r"--[\w-]+", subcommand)) == set(re.findall(r"--[\w-]+", script))
    assert len(set(re.findall(r"--[\w-]+", script))) >= (1 if job == "models" else 5)


def test_a_subcommand_has_the_last_line_of_its_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output, code = run(capsys, monkeypatch, "models", "list", "--store", str(tmp_path))
    assert code == 0
    assert json.loads(output.splitlines()[0]) == {"store": str(tmp_path), "models": []}


def test_the_command_names_itself_in_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, code = run(capsys, monkeypatch, "finetune", "--variant", "b8")
    assert code == 2 and output.startswith("effnet-ray finetune: ")


def test_the_command_lists_all_jobs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuple(all_jobs.FLAGS) == main.JOBS
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(main.JOBS)
    for arguments in ([], ["--help"]):
        output, code = run(capsys, monkeypatch, *arguments)
        assert code == 0 and all(f"• {job}" in output for job in main.JOBS)
    output, code = run(capsys, monkeypatch, "--version")
    assert (output, code) == (f"effnet-ray {__version__}\n", 0)
    output, code = run(capsys, monkeypatch, "trian", "--epochs", "3")
    assert code == 2 and "trian" in output and "finetune" in output


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_command_prints_shell_completion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    output, code = run(capsys, monkeypatch, "--tyro-print-completion", shell)
    assert code == 0 and "effnet-ray" in output and "--drop-path" in output
