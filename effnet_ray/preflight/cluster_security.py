"""Checks a cluster file for open ports, missing authentication and secrets."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from effnet_ray.preflight.findings import Finding, problem
from effnet_ray.redaction import SECRET_NAME, TOKENS

TOKEN_FILE = ".ray/auth_token"
HOME_TOKEN_FILE = re.compile(rf"(~|/root|/home/[^/]+)/{re.escape(TOKEN_FILE)}")
"""The paths where Ray looks for its token."""
SECRETS = re.compile(
    TOKENS.pattern
    +
    # A name like HF_TOKEN with a literal value; not a variable, not the path of a file.
    rf"|\b(?!\w*(?i:path|file|mode)\b)(?i:\w*{SECRET_NAME}\w*)\s*[=:]\s*[\"']?[^\s\"'$]"
)
SECRET_FIELD = re.compile(rf"(?i)[a-z_]*{SECRET_NAME}")
"""Names of fields that hold a secret."""
NO_SECRET_FIELDS = ("HttpTokens", "automountServiceAccountToken", "enableK8sTokenAuth")
EVERYWHERE = re.compile(r"0\.0\.0\.0|\[?::\]?(?=[\s/:]|$)")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DASHBOARD = re.compile(r"--dashboard-host[= ]\s*(\S+)")
PUBLISHED = re.compile(r"(?:-p|--publish)[= ]?\s*(\S+)")
MODE = re.compile(r"RAY_AUTH_MODE=[\"']?([^\s;\"']*)")

Config = Mapping[str, Any]


def check_security(config: Config) -> Iterator[Finding]:
    """Checks of a file with Ray's defaults filled in."""
    yield _authentication(config)
    yield _dashboard(config)
    yield _network(config)


def check_secrets(config: Config | Sequence[Any], text: str) -> Finding:
    """Whether any field of the file, or of its documents, holds a secret. Comments are ignored."""
    secret = next(filter(None, (_secret(*pair) for pair in _fields("", config))), "")
    line = next((n for n, row in enumerate(text.splitlines(), start=1) if secret in row), 0)
    place = f" on line {line}" if line else ""
    return problem(
        "no secrets",
        f"{secret[:4]}…{place}" if secret else "",
        "none",
        "remove it and revoke it: machines get access by IamInstanceProfile or serviceAccounts, "
        f"pods by serviceAccountName, and the token by file_mounts ({TOKEN_FILE}) or from KubeRay",
    )


def _fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every value in the file as text, with the name of its field."""
    if isinstance(value, Mapping):
        for key in ("key", "name"):  # an item of Google's metadata, a variable of a pod
            if isinstance(value.get(key), str) and "value" in value:
                yield value[key].replace("-", "_"), str(value["value"])
        for key, inner in value.items():
            yield from _fields(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(name, inner)
    else:
        yield name, str(value)


def _secret(name: str, value: str) -> str:
    """The name or text that reveals a secret; empty if there is none."""
    literal = value and not value.startswith("$") and not value.isdigit()
    if literal and name not in NO_SECRET_FIELDS and SECRET_FIELD.fullmatch(name):
        return name
    secret = SECRETS.search(value)
    return secret.group() if secret else ""


def _authentication(config: Config) -> Finding:
    commands = _commands(config)
    starts = [command for command in commands if "ray start" in command]
    modes = [MODE.findall(command) for command in commands]
    exported = any("token" in MODE.findall(command) for command in config["setup_commands"])
    closed = exported or all(MODE.search(command) for command in starts)
    closed &= all(mode == "token" for command_modes in modes for mode in command_modes)
    mounted = any(
        HOME_TOKEN_FILE.fullmatch(str(target)) and str(source).endswith("/auth_token")
        for target, source in (config.get("file_mounts") or {}).items()
    )
    return problem(
        "token authentication",
        "off" if not closed else "" if mounted else "on, but no token on the machines",
        "on, and the token is mounted",
        "put RAY_AUTH_MODE=token before every `ray start`, and mount the token file: "
        f"file_mounts: {{/home/ubuntu/{TOKEN_FILE}: ~/{TOKEN_FILE}}}",
    )


def _dashboard(config: Config) -> Finding:
    heads = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    hosts = [DASHBOARD.findall(command) for command in heads]
    loopback = all(names and set(names) <= set(LOOPBACK) for names in hosts)
    return problem(
        "dashboard",
        "" if loopback and heads else "open to every network",
        "on loopback",
        "start the head with --dashboard-host=127.0.0.1, and reach it with `ray dashboard`",
    )


def _network(config: Config) -> Finding:
    """What listens on every network, and what the security group allows."""
    docker = [
        option
        for section in (config.get("docker") or {}, *config["available_node_types"].values())
        for part in (section, section.get("docker") or {})
        for name in ("run_options", "head_run_options", "worker_run_options")
        for option in part.get(name) or []
    ]
    wrong = [
        f"{text.strip()!r}" for text in [*_commands(config), *docker] if EVERYWHERE.search(text)
    ]
    wrong += [
        f"docker publishes {port}"
        for option in docker
        for port in PUBLISHED.findall(str(option))
        if not port.startswith(LOOPBACK)
    ]
    group = config["provider"].get("security_group") or {}
    for rule in group.get("IpPermissions") or []:
        if EVERYWHERE.search(" ".join(text for _, text in _fields("", rule))):
            wrong.append(f"the security group opens port {rule.get('FromPort', 'any')}")
    return problem(
        "network",
        f"open to everyone: {', '.join(wrong)[:200]}" if wrong else "",
        _firewall(config),
        "listen on 127.0.0.1, and allow only known addresses",
    )


def _firewall(config: Config) -> str:
    """Who decides what reaches the machines."""
    if config["provider"]["type"] == "gcp":
        return "the firewall rules of your project's network"
    types = config["available_node_types"].values()
    if any("SecurityGroupIds" in node["node_config"] for node in types):
        return "your own security group"
    return "Ray's security group: traffic within the cluster, and SSH by key from everywhere"


def _commands(config: Config) -> list[str]:
    """All commands that run on the machines."""
    names = [name for name in config if name.endswith("_commands")]
    return [str(command) for name in names for command in config[name] or []]
