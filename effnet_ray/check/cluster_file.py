"""A file for Ray's cluster launcher, held against Ray, EC2 and our own rules. Nothing is called.

`ray up` checks only its own fields: a mistyped `InstanceType` is noticed when the first machine is
bought, and what its defaults open to the world is never said.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from effnet_ray.check import ec2
from effnet_ray.check.findings import Finding, finding
from effnet_ray.errors import ClusterError

TOKEN = ".ray/auth_token"
OURS = ("SubnetIds",)
"""Fields of a node_config that Ray takes out before it asks EC2 (ray 2.60 `aws/config.py`)."""
SECRETS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|aws_(?:secret_access_key|session_token)|RAY_AUTH_TOKEN\s*[=:]",
    re.IGNORECASE,
)
"""An access key's id, or the names under which secrets are given."""
EVERYWHERE = re.compile(r"0\.0\.0\.0|\[?::\]?(?=\s|$)")
LOOPBACK = re.compile(r"--dashboard-host[= ](127\.0\.0\.1|localhost)\b")
PLACEHOLDER = re.compile(r"\bYOUR-[A-Z-]+")

Config = Mapping[str, Any]


def check_cluster_file(path: str) -> list[Finding]:
    """All findings for the file. Raises ClusterError where it cannot be read as YAML."""
    try:
        text = Path(path).expanduser().read_text()
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ClusterError(f"{path} cannot be read as YAML ({why}): correct it") from None
    if not isinstance(config, dict):
        raise ClusterError(f"{path} is no cluster file: expected a YAML mapping")
    accepted, filled = _by_ray(config)
    findings = [accepted, _secrets(text), *_placeholders(text)]
    if accepted.ok:
        findings += [*_commands(filled), *_workers(filled), *_machines(filled)]
    return findings


def _by_ray(config: Config) -> tuple[Finding, Config]:
    """Ray's own schema, and the file with Ray's defaults filled in."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # takes a second

    check = "Ray's schema"
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with redirect_stdout(None), redirect_stderr(None):  # what Ray tells is not about the file
            filled: Config = prepare_config(copy.deepcopy(dict(config)))
            validate_config(filled)
    except Exception as error:  # jsonschema's, or whatever Ray stumbles over
        where = ".".join(map(str, getattr(error, "absolute_path", ())))
        found = ": ".join(filter(None, [where, getattr(error, "message", str(error))]))
        found = found or type(error).__name__
    else:
        return finding(check, "", "accepted", ""), filled
    return finding(check, found, "", "correct the field"), {}


def _secrets(text: str) -> Finding:
    found = SECRETS.search(_without_comments(text))
    return finding(
        "no secrets",
        f"{found.group()[:4]}… on line {_line(text, found.group())}" if found else "",
        "none",
        "take it out, and revoke it: machines get their rights from IamInstanceProfile, and the "
        f"token from file_mounts ({TOKEN})",
    )


def _placeholders(text: str) -> Iterator[Finding]:
    left = PLACEHOLDER.search(_without_comments(text))
    if left:
        where = f"{left.group()} on line {_line(text, left.group())}"
        yield Finding(check="placeholders", ok=True, found=where, do="put your own in its place")


def _without_comments(text: str) -> str:
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())


def _line(text: str, found: str) -> int:
    lines = _without_comments(text).splitlines()
    return next(number for number, line in enumerate(lines, start=1) if found in line)


def _commands(config: Config) -> Iterator[Finding]:
    """How Ray is started."""
    head = _starts(config["head_start_ray_commands"])
    everyone = head + _starts(config["worker_start_ray_commands"])
    exported = any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    closed = exported or all("RAY_AUTH_MODE=token" in command for command in everyone)
    mounted = any(str(target).endswith(TOKEN) for target in config.get("file_mounts") or {})
    yield finding(
        "token authentication",
        "off" if not closed else "" if mounted else "on, but no token on the machines",
        "on, the token mounted",
        "put RAY_AUTH_MODE=token before every `ray start`, and mount the token file: "
        f"file_mounts: {{/home/ubuntu/{TOKEN}: ~/{TOKEN}}}",
    )
    everywhere = any(EVERYWHERE.search(command) for command in everyone)
    yield finding(
        "dashboard",
        "open to every network" if everywhere or not all(map(LOOPBACK.search, head)) else "",
        "on loopback",
        "start the head with --dashboard-host=127.0.0.1; `ray dashboard` makes a tunnel",
    )
    yield finding(
        "autoscaling",
        "" if any("--autoscaling-config" in command for command in head) else "not asked for",
        "asked for",
        "start the head with --autoscaling-config=~/ray_bootstrap_config.yaml",
    )


def _starts(commands: list[str]) -> list[str]:
    return [command for command in commands if "ray start" in command]


def _workers(config: Config) -> Iterator[Finding]:
    """How many machines there may be."""
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    yield finding(
        "head",
        "spot" if _spot(head) else "",
        "on demand",
        "the head holds every driver: buy it on demand (no InstanceMarketOptions)",
    )
    workers = [each for name, each in types.items() if name != config["head_node_type"]]
    least = sum(each.get("min_workers", 0) for each in workers)
    most, room = sum(each.get("max_workers", 0) for each in workers), config["max_workers"]
    found = f"{least} to {most} of {len(workers)} types, {room} in all"
    yield finding(
        "workers",
        found if least or most > room or not workers else "",
        found,
        "min_workers 0, so that an idle cluster costs its head alone; max_workers of the file at "
        "least the sum of its types'",
    )


def _machines(config: Config) -> Iterator[Finding]:
    """What is asked of EC2 for each type of machine."""
    if config["provider"]["type"] != "aws":
        return
    for name, each in config["available_node_types"].items():
        node = {key: value for key, value in each["node_config"].items() if key not in OURS}
        wrong = [*ec2.refusals(node), *_rules(node)]
        kind = f"{node.get('InstanceType', 'no type')}{', spot' if _spot(each) else ''}"
        yield finding(f"machine {name}", "; ".join(wrong), kind, "correct its node_config")


def _spot(node_type: Config) -> bool:
    market = node_type["node_config"].get("InstanceMarketOptions") or {}
    return bool(market.get("MarketType") == "spot")


def _rules(node: Config) -> Iterator[str]:
    """What we ask of every machine beside what EC2 does."""
    if not str(node.get("ImageId", "")).startswith(("ami-", "resolve:ssm:")):
        yield "no ImageId: Ray's default is an Ubuntu 18.04, on which torch does not run"
    if not node.get("IamInstanceProfile"):
        yield "no IamInstanceProfile, and so no rights on the bucket"
    if (node.get("MetadataOptions") or {}).get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens is not required (IMDSv2)"
    disks = [disk.get("Ebs") or {} for disk in node.get("BlockDeviceMappings") or []]
    if not disks or not all(disk.get("Encrypted") for disk in disks):
        yield "a disk that is not Encrypted"
