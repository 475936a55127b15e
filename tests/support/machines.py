"""Machines as users have them: environments of a process, and what a job may print there."""

import functools
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.jobs import ROOT

TIMEOUT_S = 240
NOBODY = 65534
"""The unprivileged user of every Linux."""
NAMELESS = 54321
"""A user id without an entry in /etc/passwd, as of `docker run --user`."""
RAW = re.compile(
    r"Traceback|\w+\.(?:cc|h)[: ]\d+|\(raylet|core_worker|Exception ignored|Stack trace"
)
"""What no user should have to read: tracebacks and the logs of Ray's C++."""
DEAD = "http://127.0.0.1:1"
"""A server that does not answer: nothing listens on port 1."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")


@dataclass(frozen=True)
class Assets:
    """What jobs work on: images, a data set and a store, which everybody may read."""

    folder: Path

    @property
    def images(self) -> str:
        """Four class folders of six images each."""
        return str(self.folder / "images")

    @property
    def data(self) -> str:
        """The images, packed."""
        return str(self.folder / "data")

    @property
    def store(self) -> str:
        """A model store with birds@v1."""
        return str(self.folder / "store")


@dataclass(frozen=True)
class Machine:
    """How a process runs: its environment, its user, its streams."""

    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables to set; None: to remove."""
    prefix: tuple[str, ...] = ()
    """The command before Python's, such as setpriv's."""
    folder: Path = ROOT
    """The working directory."""


@dataclass(frozen=True)
class Answer:
    """What a job printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line of stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


REVEAL = """
set -e
kept=$(mktemp -d)
mount --bind "$1" "$kept"
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir -p "$1"
mount --bind "$kept" "$1"
umount "$kept"
rmdir "$kept"
shift 2
exec "$@"
"""
"""Shows the folder $1 to everybody, though $2 above it is closed to others; then runs the rest."""


def as_user(uid: int) -> tuple[str, ...]:
    """The prefix of a command that another user runs, who can see this Python."""
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all")
    python = Path(sys.base_prefix)
    closed = [folder for folder in python.parents if not folder.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return user
    reveal = ("unshare", "--mount", "sh", "-c", REVEAL, "sh", str(python), str(closed[-1]))
    return (*reveal, *user)


@functools.cache
def can_change_user() -> bool:
    """Whether this process may run this Python, and what it starts, as another user."""
    starts = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import timm'])"
    probe = [*as_user(NOBODY), sys.executable, "-c", starts]
    try:
        done = subprocess.run(probe, cwd=ROOT, capture_output=True, timeout=60)
    except FileNotFoundError:
        return False
    return done.returncode == 0 and not done.stderr


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount file systems that nobody else sees."""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$1"', "sh"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            return not subprocess.run([*mount, folder], capture_output=True).returncode
        except FileNotFoundError:
            return False


def small_disk(folder: Path, options: str) -> tuple[str, ...]:
    """The prefix of a command that has a tmpfs of its own on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh", options, str(folder))


def run(machine: Machine, job: str, flags: Sequence[str]) -> Answer:
    """Run a job on a machine to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **machine.environment}
    done = subprocess.run(
        [*machine.prefix, sys.executable, str(ROOT / f"jobs/{job}.py"), *flags],
        cwd=machine.folder,
        env={name: value for name, value in environment.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    return Answer(done.returncode, out, err)


def assert_for_people(answer: Answer) -> None:
    """The job did what it was asked to, with JSON as the last line, or says why in a sentence."""
    assert not RAW.search(answer.out + answer.err), answer
    assert answer.code in (0, 1, 2), answer
    if answer.code == 0 or answer.out:
        assert isinstance(json.loads(answer.out.splitlines()[-1]), dict), answer
    else:
        assert re.match(r"[\w ]+: \S+ ", answer.sentence), answer


def _home(folder: Path, mode: int, owner: int = 0) -> str:
    home = folder / "home"
    home.mkdir()
    os.chown(home, owner, owner)
    home.chmod(mode)
    return str(home)


MACHINES: dict[str, Callable[[Path], Machine]] = {
    "LANG=C": lambda _: Machine({"LANG": "C", "LC_ALL": None, "PYTHONIOENCODING": "ascii"}),
    "no UTF-8": lambda _: Machine(
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}
    ),
    "narrow": lambda _: Machine({"NO_COLOR": "1", "COLUMNS": "40", "TERM": "dumb"}),
    "dead proxies": lambda _: Machine(dict.fromkeys(PROXIES, DEAD)),
    "stale RAY_ADDRESS": lambda _: Machine({"RAY_ADDRESS": "127.0.0.1:1"}),
    "HOME unset": lambda _: Machine({"HOME": None}),
    "HOME missing": lambda folder: Machine({"HOME": str(folder / "missing")}),
    "other user": lambda folder: Machine({"HOME": _home(folder, 0o755, NOBODY)}, as_user(NOBODY)),
    "read-only home": lambda folder: Machine({"HOME": _home(folder, 0o555)}, as_user(NOBODY)),
    "missing home": lambda _: Machine({"HOME": "/missing"}, as_user(NOBODY)),
    "nameless user": lambda _: Machine({"HOME": "/", "USER": None}, as_user(NAMELESS)),
    "no home": lambda _: Machine({"HOME": None, "USER": None}, as_user(NAMELESS)),
}
"""Name → the machine, from a folder for its files."""

OTHER_USERS = ("other user", "read-only home", "missing home", "nameless user", "no home")

Flags = Callable[[Assets, Path], list[str]]
"""The flags of a job, from what there is and a folder to write to."""

SMALL = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "8"]


def _places(assets: Assets, out: Path) -> list[str]:
    return ["--runs", str(out / "runs"), "--store", assets.store]


WITHOUT_RAY: dict[str, tuple[str, Flags]] = {
    "pack": ("pack", lambda a, out: ["--source", a.images, "--out", str(out / "packed")]),
    "data": ("data", lambda a, out: [a.data, "--page", str(out / "page.html")]),
    "check": ("check", lambda a, out: ["--data", a.images, *SMALL, *_places(a, out)]),
    "list": ("models", lambda a, out: ["list", "--store", a.store]),
    "show": ("models", lambda a, out: ["show", "birds@v1", "--store", a.store]),
    "verify": ("models", lambda a, out: ["verify", "--store", a.store]),
    "export": ("models", lambda a, out: [
        "export", "birds@v1", "--store", a.store, "--format", "torch", "--out", str(out / "ex"),
    ]),
    "serve": ("serve", lambda a, out: ["--model", "birds@v2", "--store", a.store]),
    "predict": ("predict", lambda a, out: [
        "--model", "birds@v2", "--store", a.store, "--source", a.images, "--out", str(out / "p"),
    ]),
}  # fmt: skip
"""The shortest path of each job that starts no Ray: name → job and flags."""

WITH_RAY: dict[str, tuple[str, Flags]] = {
    "finetune": ("finetune", lambda a, out: [
        "--local", "--workers", "1", "--data", a.data, *SMALL, "--name", "small",
        "--runs", str(out / "runs"), "--store", str(out / "store"),
    ]),
    "tune": ("tune", lambda a, out: [
        "--local", "--workers", "1", "--data", a.data, *SMALL, "--name", "search",
        "--variants", "b0", "--trials", "1",
        "--runs", str(out / "runs"), "--store", str(out / "store"),
    ]),
    "evaluate": ("evaluate", lambda a, out: [
        "--local", "--workers", "1", "--model", "birds@v1", "--store", a.store, "--data", a.data,
        "--report", str(out / "report.html"),
    ]),
    "predict": ("predict", lambda a, out: [
        "--local", "--workers", "1", "--model", "birds@v1", "--store", a.store,
        "--source", a.images, "--out", str(out / "predicted"),
    ]),
}  # fmt: skip
"""The shortest path of each job that starts Ray."""
