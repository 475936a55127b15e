"""Ray, the clouds' APIs and our rules accept our cluster files; what would hurt is refused."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from effnet_ray.cli.check import check_job
from effnet_ray.cli.main import main
from effnet_ray.errors import ClusterError
from effnet_ray.preflight import compute_engine
from effnet_ray.preflight.cluster_file import check_cluster_file
from effnet_ray.preflight.findings import all_right

ROOT = Path(__file__).parents[1]
AWS = ROOT / "cluster/aws.yaml"
GCP = ROOT / "cluster/gcp.yaml"

DOCKER = 'docker: {{image: x, container_name: x, run_options: ["{}"]}}\nauth:\n'


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


@pytest.mark.parametrize(
    ("old", "new", "check", "says"),
    [
        ("max_workers: 24", "max_worker: 24", "Ray's schema", "max_worker"),
        ("{CPU: 16}", "{CPU: 1.5}", "Ray's schema", "1.5 is not of type 'integer'"),
        ("head_node_type: head", "head_node_type: boss", "Ray's schema", "must be one of"),
        ("InstanceType: c7i", "InstanseType: c7i", "machine cpu", "InstanseType"),
        ("c7i.4xlarge", "c7i.5xlarge", "machine cpu", "'c7i.5xlarge' is not a valid value"),
        ("VolumeSize: 120", "VolumeSize: big", "machine head", "VolumeSize"),
        ("HttpTokens: required", "HttpTokens: optional", "machine head", "IMDSv2"),
        ("Encrypted: true", "Encrypted: false", "machine gpu-large", "not Encrypted"),
        ("IamInstanceProfile: {Name: effnet-ray}", "KeyName: mine", "machine head", "no access"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard", "every network"),
        ("--dashboard-host=127.0.0.1\n", "\n", "dashboard", "open to every network"),
        ("  /home/ubuntu/.ray/auth_token: ~", "  /home/ubuntu/token: ~",
         "token authentication", "no token on the machines"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "token authentication", "off"),
        ("max_workers: 24", "max_workers: 4", "workers", "0 to 24 of 5 types, at most 4 in total"),
        ("priority: 20", "min_workers: 1", "workers", "1 to 24"),
        ("EFFNET_DATA=", "AWS_SECRET_ACCESS_KEY=x EFFNET_DATA=", "no secrets", "on line"),
        ("cluster_name: effnet-ray", "cluster_name: AKIAIOSFODNN7EXAMPLE", "no secrets", "AKIA…"),
        ("--autoscaling-config", "--other-config", "autoscaling", "not configured"),
        ("RAY_AUTH_MODE=token RAY_enable", "RAY_AUTH_MODE=disabled RAY_enable",
         "token authentication", "off"),
        ("auth_token: ~/.ray/auth_token", "auth_token: requirements.lock",
         "token authentication", "no token on the machines"),
        ("/home/ubuntu/.ray/auth_token:", "/tmp/.ray/auth_token:",
         "token authentication", "no token on the machines"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=127.0.0.1 --dashboard-host=10.0.0.1",
         "dashboard", "every network"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=localhost.evil.com", "dashboard",
         "every network"),
        ("  type: aws\n",
         "  type: aws\n  security_group: {GroupName: x, IpPermissions: [{FromPort: 0, "
         "ToPort: 65535, IpProtocol: tcp, IpRanges: [{CidrIp: 0.0.0.0/0}]}]}\n",
         "network", "the security group opens port 0"),
        ("auth:\n", DOCKER.format("-p 8265:8265"), "network", "docker publishes 8265:8265"),
        ("auth:\n", DOCKER.format("-p 0.0.0.0:1:1"), "network", "open to everyone"),
        ("InstanceType: m7i.xlarge", "UserData: export HF_TOKEN=abc", "no secrets", "HF_T…"),
        ("InstanceType: m7i.xlarge", 'UserData: "-----BEGIN RSA PRIVATE KEY-----"',
         "no secrets", "----…"),
        ("  - chmod", """  - "echo ' #'; export AWS_SECRET_ACCESS_KEY=x"\n  - chmod""",
         "no secrets", "AWS_…"),
        ("InstanceType: m7i.xlarge", "KeyName: mine", "machine head", "no InstanceType"),
        ("region: us-west-2", "region: us-wset-2", "location", "'us-wset-2' is not an EC2 region"),
        ("InstanceMarketOptions: *spot", "InstanceMarketOptions: spot", "machine gpu-small",
         "InstanceMarketOptions"),
        ("MetadataOptions: {HttpTokens: required, HttpPutResponseHopLimit: 1}",
         "MetadataOptions: required", "machine head", "MetadataOptions"),
        ("{VolumeSize: 120, VolumeType: gp3, Encrypted: true, DeleteOnTermination: true}", "big",
         "machine head", "Ebs"),
        ("InstanceType: m7i.xlarge",
         "InstanceType: m7i.xlarge\n      InstanceMarketOptions: {MarketType: spot}",
         "head", "spot"),
    ],
)  # fmt: skip
def test_what_would_hurt_is_named(
    tmp_path: Path, old: str, new: str, check: str, says: str
) -> None:
    text = AWS.read_text()
    assert old in text
    assert says in found(text.replace(old, new), tmp_path)[check]


def test_a_field_that_comes_twice_is_refused(tmp_path: Path) -> None:
    text = AWS.read_text() + "\nmax_workers: 5\n"
    with pytest.raises(ClusterError, match="duplicate field 'max_workers'"):
        found(text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "check", "says"),
    [
        ("machineType: g2", "machineTyp: g2", "machine gpu-small", "'machineTyp' was unexpected"),
        ("zones/us-central1-a/disk", "zones/us-east1-a/disk", "machine head",
         "zone us-east1-a is not the provider's"),
        ("provisioningModel: SPOT", "provisioningModel: Spot", "machine cpu",
         "scheduling.provisioningModel: 'Spot' is not one of"),
        ("automaticRestart: false", "automaticRestart: 0", "machine cpu",
         "scheduling.automaticRestart: 0 is not of type 'boolean'"),
        ("diskSizeGb: 120", "diskSizeGb: big", "machine head", "diskSizeGb: 'big' does not match"),
        ("boot: true", "bot: true", "machine gpu-large", "'bot' was unexpected"),
        ("sourceImage: projects", "sourceSnapshot: projects", "machine head", "sourceImage"),
        ("autoDelete: true", "autoDelete: false", "machine head", "without autoDelete"),
        ("instanceTerminationAction: DELETE", "instanceTerminationAction: STOP", "machine cpu",
         "not DELETE"),
        ("&on-demand\n        onHostMaintenance: TERMINATE",
         "&on-demand\n        onHostMaintenance: MIGRATE",
         "machine gpu-small-on-demand", "cannot migrate"),
        ("machineType: n2-standard-4",
         "machineType: n2-standard-4\n      scheduling: {preemptible: true}", "head", "spot"),
        ("availability_zone: us-central1-a", "availability_zone: us-central1", "location",
         "'us-central1' is not a zone"),
        ("region: us-central1", "region: us-west1", "location", "not in region 'us-west1'"),
        ("  project_id: YOUR-PROJECT\n", "", "location", "no project_id"),
        ("cache_stopped_nodes: false", "cache_stopped_nodes: true", "stopped machines", "kept"),
        ("project_id: YOUR-PROJECT",
         "project_id: x\n  gcp_credentials: {type: credentials_token, credentials: abc}",
         "no secrets", "cred…"),
        ("machineType: g2-standard-8", "machineType: g2-standard-8\n      description: ya29.a0AfB",
         "no secrets", "ya29…"),
        ("machineType: g2-standard-8",
         "machineType: g2-standard-8\n      metadata: {items: [{key: hf-token, value: abc}]}",
         "no secrets", "hf_t…"),
        ("automaticRestart: false", "automaticRestart: true", "machine cpu", "not restarted"),
        ("machineType: n2-standard-16\n",
         "machineType: n2-standard-16\n      sourceMachineImage: zones/us-east1-b\n",
         "machine cpu", "zone us-east1-b is not the provider's"),
        ("machineType: n2-standard-4", "machineType: n2-standard-4\n      scheduling: "
         "{provisioningModel: FLEX_START, instanceTerminationAction: DELETE}", "head", "spot"),
        ("provisioningModel: SPOT", "preemptible: true", "machine cpu", "needs provisioningModel"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard", "every network"),
    ],
)  # fmt: skip
def test_what_would_hurt_on_google_cloud_is_named(
    tmp_path: Path, old: str, new: str, check: str, says: str
) -> None:
    text = GCP.read_text()
    assert old in text
    assert says in found(text.replace(old, new), tmp_path)[check]


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


@pytest.mark.parametrize("text", ["- a list\n", "a: [", "\0"])
def test_what_is_no_cluster_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ClusterError, match=r"cluster.yaml (is not|cannot be read)"):
        found(text, tmp_path)


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
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False and {"check", "ok", "found", "do"} == set(told["findings"][0])
    assert main(check_job, ["--cluster-file", str(tmp_path / "nowhere.yaml")]) == 2
