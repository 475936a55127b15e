"""Ray, the clouds' APIs and our rules accept our cluster files; what would hurt is refused."""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from effnet_ray import safe_yaml
from effnet_ray.cli.check import check_job
from effnet_ray.cli.main import main
from effnet_ray.errors import ClusterError
from effnet_ray.preflight import compute_engine
from effnet_ray.preflight.cluster_file import check_cluster_file
from effnet_ray.preflight.findings import all_right

ROOT = Path(__file__).parents[1]
AWS = ROOT / "cluster/aws.yaml"
GCP = ROOT / "cluster/gcp.yaml"


def found(text: str, tmp_path: Path) -> dict[str, str]:
    """Check → what is wrong, for a cluster file's text."""
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return {each.check: each.found for each in check_cluster_file(str(file)) if not each.ok}


@pytest.mark.parametrize("file", [AWS, GCP])
def test_our_files_are_right_but_for_the_users_own_names(file: Path) -> None:
    findings = check_cluster_file(str(file))
    assert all_right(findings) and len(findings) == 17
    assert [each.check for each in findings if each.do] == ["placeholders"]


def test_a_field_that_comes_twice_is_refused(tmp_path: Path) -> None:
    text = AWS.read_text() + "\nmax_workers: 5\n"
    with pytest.raises(ClusterError, match="duplicate field 'max_workers'"):
        found(text, tmp_path)


def test_without_googles_document_its_machines_are_an_error_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_engine._validator.cache_clear()
    monkeypatch.setattr(compute_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"pip install 'effnet-ray\[gcp\]'"):
        check_cluster_file(str(GCP))


def test_machines_of_a_third_cloud_are_reported_as_not_checked(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(AWS.read_text().replace("type: aws", "type: azure"))
    checks = {each.check: each.found for each in check_cluster_file(str(file))}
    assert checks["machines"] == "not checked: provider 'azure'; only aws and gcp are supported"


def test_comments_are_not_held_against_a_file(tmp_path: Path) -> None:
    text = AWS.read_text() + "\n# never RAY_AUTH_TOKEN=abc here, nor 0.0.0.0\n"
    assert found(text, tmp_path) == {}


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a list\n", "is not a cluster file"),
        ("", "is not a cluster file"),
        ("a: 1\n---\nb: 1\n", "is not a cluster file"),
        ("a: [", "cannot be read as YAML"),
        ("\0", "cannot be read as YAML"),
        ("a: &a {b: *a}\n", "a value that contains itself"),
        ("a: &a {<<: *a}\n", "a value that contains itself"),
        (BOMB, "more than 100,000 values"),
        ("[" * 9999, "nested too deeply"),
        ("a: 2026-13-45\n", "month must be in 1..12"),
        ("a: !!int ''\n", "cannot be read as YAML"),
        ("a: !!bool x\n", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
        ("a: " + "1" * 2_000_000, "at most 1,000,000 are read"),
    ],
    ids=range(14),
)
def test_what_is_no_cluster_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(says)) as error:
        found(text, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cluster_name: x\nmax_workers: 2\n", "provider is missing"),
        ("cluster_name: x\nprovider: aws\n", "a field has a value of another type"),
    ],
)
def test_what_ray_itself_fails_on_is_said_in_words(tmp_path: Path, text: str, says: str) -> None:
    assert says in found(text, tmp_path)["Ray's schema"]


def test_a_folder_is_refused_and_what_another_command_writes_is_read(tmp_path: Path) -> None:
    for path in (str(tmp_path), "~nobody-of-this-name/aws.yaml"):
        with pytest.raises(ClusterError, match="cannot be read as YAML"):
            check_cluster_file(path)
    reads, writes = os.pipe()  # as in `--cluster-file <(helm template …)`
    os.write(writes, b"- a list")
    os.close(writes)
    with pytest.raises(ClusterError, match="expected a YAML mapping"):
        check_cluster_file(f"/dev/fd/{reads}")
    os.close(reads)


def test_fields_that_a_merge_overrides_are_no_duplicates() -> None:
    text = "base: &base {x: 1}\nouter: {inner: {a: &a {<<: *base, x: 2}}}\nb: {<<: *a}\n"
    assert safe_yaml.parse(text) == [yaml.safe_load(text)]


@pytest.mark.parametrize("file", [AWS, GCP])
def test_every_machine_installs_what_the_lock_says(file: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    mounted = {target: ROOT / source for target, source in config["file_mounts"].items()
               if not source.startswith("~")}  # fmt: skip
    assert all(source.exists() for source in mounted.values())
    installs = [
        line for line in config["setup_commands"] if "pip install" in line and "-r" in line
    ]
    assert installs and all("-r ~/requirements.lock" in line for line in installs)
    assert "/home/ubuntu/requirements.lock" in mounted
    pinned = dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", Path(
        ROOT / "requirements.lock").read_text(), re.MULTILINE))  # fmt: skip
    for name in ("ray", "torch", "timm", "pyarrow"):
        assert pinned[name] == version(name).partition("+")[0]


def test_the_job_prints_json_and_exits_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(check_job, ["--cluster-file", str(AWS)]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    bad = tmp_path / "bad.yaml"
    bad.write_text(AWS.read_text().replace("127.0.0.1", "0.0.0.0"))
    assert main(check_job, ["--cluster-file", str(bad)]) == 1
    output = json.loads(capsys.readouterr().out)
    assert output["ok"] is False and {"check", "ok", "found", "do"} == set(output["findings"][0])
    assert main(check_job, ["--cluster-file", str(tmp_path / "nowhere.yaml")]) == 2
