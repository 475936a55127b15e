"""The lock holds hashes of every package and no version with a serious published fault."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()

FLOORS = {
    "ray": "2.60",  # token authentication, as tests/test_security.py holds it (CVE-2023-48022)
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: code runs on weights_only loads
    "pillow": "12.3",
    "pyarrow": "14.0.1",  # CVE-2023-47248: code runs on reading
    "aiohttp": "3.13.3",  # CVE-2025-69223: a small body fills the memory
    "certifi": "2024.7.4",  # CVE-2024-39689
    "cryptography": "46.0.5",  # CVE-2026-26007
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701
    "flask": "3.1.1",  # CVE-2025-47278
    "fonttools": "4.60.2",  # CVE-2025-66034
    "gitpython": "3.1.41",  # CVE-2024-22190
    "grpcio": "1.54.3",  # CVE-2023-33953
    "gunicorn": "23.0",  # CVE-2024-6827: request smuggling
    "h11": "0.16",  # CVE-2025-43859: request smuggling
    "idna": "3.7",  # CVE-2024-3651
    "jinja2": "3.1.6",  # CVE-2025-27516
    "onnx": "1.17",  # CVE-2024-5187: writes outside its folder
    "opencv-python-headless": "4.8.1.78",  # CVE-2023-4863: libwebp
    "protobuf": "6.31.1",  # CVE-2025-4565
    "pyasn1": "0.6.2",  # CVE-2026-23490
    "pyyaml": "5.4",  # CVE-2020-14343
    "requests": "2.32.4",  # CVE-2024-47081: credentials go to another host
    "scikit-learn": "1.5",  # CVE-2024-5206
    "setuptools": "78.1.1",  # CVE-2025-47273
    "sqlparse": "0.5",  # CVE-2024-4340
    "starlette": "0.49.1",  # CVE-2025-62727: a range header takes quadratic time
    "tqdm": "4.66.3",  # CVE-2024-34062
    "urllib3": "2.6.3",  # CVE-2025-66418, CVE-2025-66471, CVE-2026-21441: decompression bombs
    "virtualenv": "20.36.1",  # CVE-2026-22702
    "werkzeug": "3.1.5",  # CVE-2024-34069, CVE-2025-66221, CVE-2026-21860
    "zipp": "3.19.1",  # CVE-2024-5569
}
"""Package → the first version without the published faults that are named beside it."""

Pins = dict[tuple[str, str], set[str]]


def pins(lock: str) -> Pins:
    """(Package, version) → SHA-256 of its files."""
    entries = re.split(r"\n(?=\S)", lock.strip())
    parsed: Pins = {}
    for entry in entries:
        pin = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", entry)
        assert pin, entry.splitlines()[0]
        key = str(canonicalize_name(pin[1])), pin[2]
        parsed[key] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return parsed


PINS = pins(LOCK)


def test_every_package_of_the_lock_has_hashes() -> None:
    assert len(PINS) > 200
    assert [key for key, hashes in PINS.items() if not hashes] == []
    assert [
        line for line in LOCK.splitlines() if not re.match(r"[\w.-]+.*==| +--hash=sha256:", line)
    ] == []


def test_the_lock_names_no_index_and_fits_every_python_that_the_project_supports() -> None:
    assert "://" not in LOCK and "--index" not in LOCK
    numpy = [line for line in LOCK.splitlines() if line.startswith("numpy==")]
    assert PROJECT["requires-python"] == ">=3.11" and len(numpy) > 1  # one for each Python
    assert "--universal --python-version 3.11" in MAKEFILE and "--generate-hashes" in MAKEFILE


def test_every_direct_requirement_is_in_the_lock_at_a_version_that_it_allows() -> None:
    for requirement in direct():
        versions = [v for name, v in PINS if name == canonicalize_name(requirement.name)]
        assert versions, requirement.name
        assert all(requirement.specifier.contains(version) for version in versions)


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, with all extras that the lock has."""
    extras = PROJECT["optional-dependencies"]
    (ours,) = [r for r in map(Requirement, extras["dev"]) if r.name == PROJECT["name"]]
    names = ours.extras | {"dev"}
    requested = [*PROJECT["dependencies"], *(each for name in names for each in extras[name])]
    return [r for r in map(Requirement, requested) if r.name != ours.name]


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_no_version_with_a_serious_published_fault_is_locked(name: str, floor: str) -> None:
    versions = [Version(version) for locked, version in PINS if locked == name]
    assert versions and min(versions) >= Version(floor)


def test_a_direct_requirement_admits_no_version_below_its_floor() -> None:
    checked = set()
    for requirement in direct():
        name = str(canonicalize_name(requirement.name))
        lower = [
            Version(each.version)
            for each in requirement.specifier
            if each.operator in (">=", "==")
        ]
        assert lower, f"{name} has no lower bound"
        if name in FLOORS:
            assert max(lower) >= Version(FLOORS[name]), name
            checked.add(name)
    assert {"ray", "torch", "pillow", "pyarrow", "jinja2"} <= checked


def test_ray_is_the_minor_version_whose_behaviour_the_tests_hold() -> None:
    rays = [each for each in direct() if each.name == "ray"]
    assert len(rays) == 2
    for ray in rays:
        assert not ray.specifier.contains("2.59.9") and not ray.specifier.contains("2.61.0")


INSTALLERS = ("Makefile", "cluster/Dockerfile", "cluster/aws.yaml", "cluster/gcp.yaml")


@pytest.mark.parametrize("file", INSTALLERS)
def test_whoever_installs_the_lock_requires_hashes(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ").replace("$(HASHED)", hashed())
    installs = [
        line for line in text.splitlines() if re.search(r"-r \S*\.lock|-r \S+/\S+\.lock", line)
    ]
    assert installs and all(
        "--require-hashes" in line and "--no-deps" in line for line in installs
    )


def hashed() -> str:
    """The Makefile's command that installs a lock."""
    command = re.search(r"^HASHED := (.*)$", MAKEFILE, re.MULTILINE)
    assert command
    return command[1]


def test_another_build_of_torch_is_installed_beside_the_hashes_of_all_else() -> None:
    """PyTorch's own index has other files of the same version."""
    script = re.search(r"awk '(.*?)'", MAKEFILE, re.DOTALL)
    assert script
    done = subprocess.run(
        ["awk", script[1], ROOT / "requirements.lock"], capture_output=True, text=True, check=True
    )
    left_out = {name for name, _ in PINS} - {name for name, _ in pins(done.stdout)}
    assert {"torch", "torchvision"} <= left_out
    assert all(
        re.fullmatch("torch|torchvision|triton|(nvidia|cuda)-.*", each) for each in left_out
    )
    assert all(PINS[key] == hashes for key, hashes in pins(done.stdout).items())


def test_no_locked_package_makes_the_start_of_each_ray_process_slow() -> None:
    """`import ray` imports jsonschema, and that imports `rfc3987-syntax` if it is installed.

    The package then compiles a grammar for 1.5 s, and a run starts ten processes.
    """
    assert "rfc3987-syntax" not in {name for name, _ in PINS}


@pytest.mark.heavy
def test_the_sbom_lists_every_package_of_the_lock_with_its_hashes(tmp_path: Path) -> None:
    """By the command of `make sbom`; the tool checks the file against CycloneDX's schema."""
    _, _, recipe = MAKEFILE.replace("\\\n", " ").partition("\nsbom: setup\n\t")
    command = recipe.splitlines()[0].replace("$(BIN)", str(Path(sys.executable).parent))
    words = [*shlex.split(command)[:-1], str(tmp_path / "sbom.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "Failed to fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    sbom = json.loads((tmp_path / "sbom.json").read_text())
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert sbom["metadata"]["component"]["name"] == PROJECT["name"]
    listed = {(str(canonicalize_name(c["name"])), c["version"]): c for c in sbom["components"]}
    assert listed.keys() == PINS.keys()
    for (name, version), component in listed.items():
        assert component["purl"].partition("?")[0] == f"pkg:pypi/{name}@{version}"
        files = [h for each in component["externalReferences"] for h in each.get("hashes", ())]
        assert {each["content"] for each in files} == PINS[name, version]
        assert {each["alg"] for each in files} == {"SHA-256"}
