"""Planted mistakes in the cluster files of every kind are named, sensible edits are accepted."""

from pathlib import Path

import pytest

from effnet_ray.preflight.cluster_file import check_cluster_file

ROOT = Path(__file__).parents[1]
AWS, GCP = "aws.yaml", "gcp.yaml"
CLUSTER, JOB, NIGHTLY = (f"kuberay/{name}.yaml" for name in ("cluster", "finetune", "nightly"))

DOCKER = 'docker: {{image: x, container_name: x, run_options: ["{}"]}}\nauth:\n'
OWN_CLUSTER = "rayClusterSpec: {headGroupSpec: {template: {spec: {containers: [{name: ray}]}}}}"

Mistake = tuple[str, str, str, str]
"""What a person has, what they write instead, the check that fails, and what it says."""

AWS_MISTAKES: list[Mistake] = [
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
]  # fmt: skip

GCP_MISTAKES: list[Mistake] = [
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
]  # fmt: skip

KUBERAY: dict[str, list[Mistake]] = {
    CLUSTER: [
        ("maxReplicas: 4", "maxReplica: 4", "RayCluster's schema", "'maxReplica' was unexpected"),
        ("image: YOUR", "imagee: YOUR", "RayCluster's schema", "'imagee' was unexpected"),
        ("version: v2", "version: v3", "RayCluster's schema", "'v3' is not one of"),
        ('num-cpus: "0"', "num-cpus: 0", "RayCluster's schema", "0 is not of type 'string'"),
        ("memory: 12Gi", "memory: 12 GB", "RayCluster's schema", "'12 GB' does not match"),
        ("  headGroupSpec:", "  headGroup:", "RayCluster's schema", "headGroupSpec"),
        ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1", "RayCluster's schema",
         "expected ray.io/v1"),
        ("kind: RayCluster", "kind: RayClutser", "kind", "RayClutser"),
        ("  authOptions: {mode: token}", "  authOptions: {mode: disabled}",
         "token authentication", "off"),
        ("  authOptions:", "  # authOptions:", "token authentication", "off"),
        ("- {name: EFFNET_WORKERS", "- {name: RAY_AUTH_MODE, value: disabled}\n"
         "              - {name: EFFNET_WORKERS", "token authentication", "off"),
        ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "autoscaling", "off"),
        ("version: v2", "version: v1", "autoscaling", "not the second"),
        ("minReplicas: 0", "minReplicas: 1", "workers", "3 to 20 of 3 groups"),
        ("maxReplicas: 4", "maxReplicas: 4\n      replicas: 5", "workers",
         "replicas of cpu are not 0 to 4"),
        ("groupName: gpu-large", "groupName: gpu-small", "workers", "two groups are named"),
        ('rayVersion: "2.60.0"', 'rayVersion: "2.9.0"', "versions", "rayVersion is 2.9.0"),
        ("effnet-ray:0.1.0", "effnet-ray:latest", "versions", "no fixed version"),
        ("- <<: *container\n              resources:\n                requests: {cpu: \"14\"",
         "- <<: *container\n              image: mine/old:1\n              resources:\n"
         "                requests: {cpu: \"14\"", "versions", "2 images"),
        ("rayStartParams: {num-cpus", "serviceType: LoadBalancer\n    rayStartParams: {num-cpus",
         "network", "LoadBalancer"),
        ("rayStartParams: {num-cpus", "enableIngress: true\n    rayStartParams: {num-cpus",
         "network", "ingress"),
        ("terminationGracePeriodSeconds: &grace", "hostNetwork: true\n"
         "        terminationGracePeriodSeconds: &grace", "network", "machine's network"),
        ("serviceAccountName: effnet-ray # bound",
         "nodeSelector: {karpenter.sh/capacity-type: spot}\n        serviceAccountName: x # bound",
         "head", "spot"),
        ("&grace 120", "&grace 60", "pods gpu-small", "killed after 60 s, but drained for 100 s"),
        ("&grace 120", "&grace 60", "pods head", "killed after 60 s"),
        ("          terminationGracePeriodSeconds: *grace\n          securityContext: *user\n"
         "          volumes: *volumes\n          nodeSelector", "          nodeSelector",
         "pods gpu-large", "killed after 30 s"),
        ("- {key: nvidia.com/gpu, operator", "- {key: gpu, operator", "tolerations of gpu-small",
         "none of nvidia.com/gpu"),
        ("          serviceAccountName: effnet-ray\n          terminationGracePeriodSeconds: ",
         "          terminationGracePeriodSeconds: ", "pods cpu", "no access to the bucket"),
        ("allowPrivilegeEscalation: false", "privileged: true", "pods cpu", "privileged"),
        ('memory: 28Gi, nvidia.com/gpu: "1"}\n                limits: {memory: 28Gi, '
         'nvidia.com/gpu: "1"}', 'memory: 28Gi, nvidia.com/gpu: "1"}', "pods gpu-large",
         "nvidia.com/gpu has no limit"),
        ("limits: {memory: 28Gi}", "limits: {memory: 2800Mi}", "pods cpu",
         "requests 28Gi of memory, its limit is 2800Mi"),
        ("{name: EFFNET_WORKERS,", "{name: HF_TOKEN, value: abc}\n"
         "              - {name: EFFNET_WORKERS,", "no secrets", "HF_T…"),
        ('requests: {cpu: "7"', 'requests: {cpu: "15"', "EFFNET_MACHINES",
         "gpu-small is not as in workerGroupSpecs"),
        ("gpu-large: {resources", "gpu-larg: {resources", "EFFNET_MACHINES",
         "gpu-larg is not in workerGroupSpecs"),
        ("cpu: {resources: {CPU: 14}", "cpu: {resources: {CPU: 14", "EFFNET_MACHINES",
         "not valid YAML"),
    ],
    JOB: [
        ("entrypoint:", "entryPoint:", "RayJob's schema", "'entryPoint' was unexpected"),
        ("  entrypoint:", "  # entrypoint:", "job", "no entrypoint"),
        ("  clusterSelector:", "  # clusterSelector:", "job", "either clusterSelector or"),
        ("{ray.io/cluster: effnet-ray}", "{cluster: effnet-ray}", "job", "no ray.io/cluster"),
        ("HTTPMode", "HttpMode", "job", "'HttpMode' is not one of"),
        ("  clusterSelector: {ray.io/cluster: effnet-ray}", f"  {OWN_CLUSTER}", "job",
         "its cluster stays"),
        ("  clusterSelector: {ray.io/cluster: effnet-ray}", f"  {OWN_CLUSTER}",
         "token authentication", "off"),
        ("  entrypoint:", "  suspend: true\n  entrypoint:", "job", "cannot be suspended"),
        ("finetune.py --", "finetune.py --api-key=abc --", "no secrets", "api-…"),
    ],
    NIGHTLY: [
        ("schedule:", "shedule:", "RayCronJob's schema", "'shedule' was unexpected"),
        ('"0 2 * * *"', '"2 * * *"', "job", "not a cron expression"),
        ("submissionMode", "submitMode", "RayCronJob's schema", "'submitMode' was unexpected"),
    ],
}  # fmt: skip

MISTAKES = [
    (file, *mistake)
    for file, mistakes in {AWS: AWS_MISTAKES, GCP: GCP_MISTAKES, **KUBERAY}.items()
    for mistake in mistakes
]

GOOD: list[tuple[str, str, str]] = [
    (AWS, "region: us-west-2\n  availability_zone: us-west-2a,us-west-2b,us-west-2c",
     "region: eu-central-1\n  availability_zone: eu-central-1a"),
    (AWS, "c7i.4xlarge", "c7a.8xlarge"),
    (AWS, "InstanceType: m7i.xlarge", "InstanceType: r7i.2xlarge"),
    (AWS, "      InstanceMarketOptions: *spot\n", ""),
    (AWS, "max_workers: 24", "max_workers: 200"),
    (AWS, "VolumeSize: 120", "VolumeSize: 500"),
    (AWS, "VolumeType: gp3,", "VolumeType: gp3, Iops: 6000, Throughput: 500,"),
    (AWS, "ImageId: resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-"
     "ubuntu-22.04/latest/ami-id", "ImageId: ami-0123456789abcdef0"),
    (AWS, "IamInstanceProfile: {Name: effnet-ray}",
     "IamInstanceProfile: {Arn: arn:aws:iam::123456789012:instance-profile/mine}"),
    (AWS, "      InstanceType: m7i.xlarge\n",
     "      InstanceType: m7i.xlarge\n      SubnetIds: [subnet-1]\n"
     "      SecurityGroupIds: [sg-0123]\n"),
    (AWS, "# Paths are", "  gpu-h100:\n    resources: {CPU: 16, GPU: 1}\n    max_workers: 0\n"
     "    node_config:\n      <<: *machine\n      InstanceType: p5.4xlarge\n\n# Paths are"),
    (AWS, "  ssh_user: ubuntu", "  ssh_user: ubuntu\n  ssh_private_key: ~/.ssh/mine.pem"),
    (AWS, "  type: aws\n", "  type: aws\n  security_group: {GroupName: x, IpPermissions: "
     "[{FromPort: 22, ToPort: 22, IpProtocol: tcp, IpRanges: [{CidrIp: 10.1.2.3/32}]}]}\n"),
    (AWS, "EFFNET_WORKERS=1:8", "EFFNET_WORKERS=2 HF_TOKEN_PATH=/home/ubuntu/hf"),
    (GCP, "us-central1", "europe-west4"),
    (GCP, "n2-standard-16", "c3-standard-22"),
    (GCP, "machineType: a2-highgpu-1g\n      disks: *disks\n      networkInterfaces: *network\n"
     "      scheduling: *spot", "machineType: a2-highgpu-1g\n      disks: *disks\n"
     "      networkInterfaces: *network\n      scheduling: *on-demand"),
    (GCP, "diskSizeGb: 120", 'diskSizeGb: "500"'),
    (GCP, "machineType: n2-standard-4\n",
     "machineType: n2-standard-4\n      labels: {team: vision}\n"),
    (GCP, "idle_timeout_minutes: 5", "idle_timeout_minutes: 30"),
    (GCP, "machineType: g2-standard-8", "machineType: n1-standard-8\n"
     "      guestAccelerators: [{acceleratorType: nvidia-tesla-t4, acceleratorCount: 1}]"),
    (CLUSTER, "effnet-ray:0.1.0", "effnet-ray:2026-11-30"),
    (CLUSTER, "image: YOUR-REGISTRY/effnet-ray:0.1.0", "image: mine/effnet@sha256:0123"),
    (CLUSTER, "idleTimeoutSeconds: 300", "idleTimeoutSeconds: 60"),
    (CLUSTER, "&grace 120", "&grace 600"),
    (CLUSTER, 'value: "100"', 'value: "40"'),
    (CLUSTER, "NVIDIA-L4}", "NVIDIA-A10}"),
    (CLUSTER, "maxReplicas: 8", "maxReplicas: 8\n      idleTimeoutSeconds: 60"),
    (CLUSTER, "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}", "{operator: Exists}"),
    (CLUSTER, "          serviceAccountName: effnet-ray\n",
     "          automountServiceAccountToken: true\n          serviceAccountName: mine\n"),
    (CLUSTER, "limits: {memory: 12Gi}", "limits: {cpu: 3500m, memory: 13000Mi}"),
    (CLUSTER, "- {name: EFFNET_GPUS_PER_WORKER", "- name: HF_TOKEN\n                valueFrom: "
     "{secretKeyRef: {name: hf, key: token}}\n              - {name: EFFNET_GPUS_PER_WORKER"),
    (CLUSTER, "  - {name: home, mountPath: /home/ray}",
     "  - {name: home, mountPath: /home/ray}\n      - {name: cache, mountPath: /cache}"),
    (JOB, "--variant b7", "--variant v2_s --epochs 30"),
    (JOB, "  submissionMode: HTTPMode", "  submissionMode: K8sJobMode\n  backoffLimit: 2"),
    (NIGHTLY, '"0 2 * * *"', '"*/30 1-5 * * MON-FRI"'),
]  # fmt: skip
"""Edits that people make, in files whose placeholders are replaced."""


def edited(file: str, old: str, new: str) -> str:
    text = (ROOT / "cluster" / file).read_text()
    assert old in text
    return text.replace(old, new)


def problems(text: str, folder: Path) -> dict[str, str]:
    """Check → what is wrong or advised, for a cluster file's text."""
    path = folder / "cluster.yaml"
    path.write_text(text)
    return {
        each.check: each.found for each in check_cluster_file(str(path)) if each.do or not each.ok
    }


@pytest.mark.parametrize(("file", "old", "new", "check", "says"), MISTAKES)
def test_a_planted_mistake_is_named(
    tmp_path: Path, file: str, old: str, new: str, check: str, says: str
) -> None:
    assert says in problems(edited(file, old, new), tmp_path)[check]


def test_fifty_mistakes_are_planted_of_every_kind_of_file_some() -> None:
    assert len(MISTAKES) >= 50 and len(set(MISTAKES)) == len(MISTAKES)
    assert len(AWS_MISTAKES) >= 20 and len(GCP_MISTAKES) >= 20 and len(KUBERAY[CLUSTER]) >= 20


@pytest.mark.parametrize(("file", "old", "new"), GOOD)
def test_a_sensible_edit_raises_no_false_alarm(
    tmp_path: Path, file: str, old: str, new: str
) -> None:
    text = edited(file, old, new).replace("YOUR-", "my-")
    assert problems(text, tmp_path) == {}


def test_twenty_edits_are_tried_of_every_kind_of_file_some() -> None:
    assert len({*GOOD}) == len(GOOD) >= 20
    assert {file for file, _, _ in GOOD} == {AWS, GCP, *KUBERAY}
