"""Who could reach a cluster started from a file, and what the file gives away."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from effnet_ray.preflight.findings import Finding, problem

TOKEN = ".ray/auth_token"
AT_HOME = re.compile(rf"(~|/root|/home/[^/]+)/{re.escape(TOKEN)}")
"""Where Ray looks for its token."""
SECRET_NAME = r"(?:secret|token|passw(?:or)?d|api_?key|credential)"
SECRETS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # an access key's id
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(?:hf|gh[pousr])_[A-Za-z0-9]{30,}"  # Hugging Face, GitHub
    # A name like HF_TOKEN, given a value that is no variable; not the path of a file.
    rf"|\b(?!\w*(?:path|file|mode)\b)(?i:\w*{SECRET_NAME}\w*)\s*[=:]\s*[\"']?[^\s\"'$]"
)
NAMED = re.compile(rf"(?i)[a-z_]*{SECRET_NAME}")
"""A field that holds one."""
HARMLESS = ("HttpTokens",)
EVERYWHERE = re.compile(r"0\.0\.0\.0|\[?::\]?(?=[\s/:]|$)")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DASHBOARD = re.compile(r"--dashboard-host[= ]\s*(\S+)")
PUBLISHED = re.compile(r"(?:-p|--publish)[= ]?\s*(\S+)")
MODE = re.compile(r"RAY_AUTH_MODE=[\"']?([^\s;\"']*)")

Config = Mapping[str, Any]


def checks(config: Config) -> Iterator[Finding]:
    """Of a file with Ray's defaults filled in."""
    yield _authentication(config)
    yield _dashboard(config)
    yield _network(config)


def secrets(config: Config, text: str) -> Finding:
    """Whether there is one in the file, in whatever field; comments do not count."""
    found = next(filter(None, (_secret(*pair) for pair in _fields("", config))), "")
    line = next((n for n, row in enumerate(text.splitlines(), start=1) if found in row), 0)
    where = f" on line {line}" if line else ""
    return problem(
        "no secrets",
        f"{found[:4]}…{where}" if found else "",
        "none",
        "take it out, and revoke it: machines get their rights from IamInstanceProfile, and the "
        f"token from file_mounts ({TOKEN})",
    )


def _fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text in there, with the name of its field."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _fields(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(name, inner)
    else:
        yield name, str(value)


def _secret(name: str, value: str) -> str:
    """What gives it away; empty where nothing does."""
    if value and name not in HARMLESS and NAMED.fullmatch(name):
        return name
    found = SECRETS.search(value)
    return found.group() if found else ""


def _authentication(config: Config) -> Finding:
    commands = _commands(config)
    starts = [command for command in commands if "ray start" in command]
    modes = [MODE.findall(command) for command in commands]
    exported = any("token" in said for said in (MODE.findall(c) for c in config["setup_commands"]))
    closed = exported or all(MODE.search(command) for command in starts)
    closed &= all(mode == "token" for said in modes for mode in said)
    mounted = any(
        AT_HOME.fullmatch(str(target)) and str(source).endswith("/auth_token")
        for target, source in (config.get("file_mounts") or {}).items()
    )
    return problem(
        "token authentication",
        "off" if not closed else "" if mounted else "on, but no token on the machines",
        "on, the token mounted",
        "put RAY_AUTH_MODE=token before every `ray start`, and mount the token file: "
        f"file_mounts: {{/home/ubuntu/{TOKEN}: ~/{TOKEN}}}",
    )


def _dashboard(config: Config) -> Finding:
    heads = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    hosts = [DASHBOARD.findall(command) for command in heads]
    loopback = all(said and set(said) <= set(LOOPBACK) for said in hosts)
    return problem(
        "dashboard",
        "" if loopback and heads else "open to every network",
        "on loopback",
        "start the head with --dashboard-host=127.0.0.1; `ray dashboard` makes a tunnel",
    )


def _network(config: Config) -> Finding:
    """What listens on every network, and what the security group lets in."""
    docker = [
        option
        for where in (config.get("docker") or {}, *config["available_node_types"].values())
        for part in (where, where.get("docker") or {})
        for name in ("run_options", "head_run_options", "worker_run_options")
        for option in part.get(name) or []
    ]
    wrong = [
        f"{each.strip()!r}" for each in [*_commands(config), *docker] if EVERYWHERE.search(each)
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
    own = any("SecurityGroupIds" in each["node_config"] for each in
              config["available_node_types"].values())  # fmt: skip
    return problem(
        "network",
        f"open to everybody: {', '.join(wrong)[:200]}" if wrong else "",
        "a security group of yours" if own else
        "Ray's own security group: the cluster's machines, and SSH from everywhere by key alone",
        "listen on 127.0.0.1, and let in known addresses only",
    )  # fmt: skip


def _commands(config: Config) -> list[str]:
    """All that are run on machines."""
    names = [name for name in config if name.endswith("_commands")]
    return [str(command) for name in names for command in config[name] or []]
