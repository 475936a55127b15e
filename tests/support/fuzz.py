"""Mutated artefacts through what reads them: `python fuzz.py SEED COUNT [TARGET …]`.

Prints one JSON line: for each target how many mutants were read and how many were refused, the
most memory that one took, the slowest, and what broke the law. An artefact is read, or refused
with one sentence; it takes no long time and no great memory, it runs no code, starts no process,
connects to nothing and writes only into its own folder.
"""

import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

MAX_S = 10
"""Seconds of CPU, whatever else the machine does."""
HANG_S = 300
"""Seconds, also of waiting."""
MAX_MB = 512
SPARE_BYTES = 4 * 1024**3
"""Address space beyond what the process has: an allocation of more fails."""
REFUSED_EVENTS = (
    "pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
    "os.forkpty", "socket.connect",
)  # fmt: skip
WRITING_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
                  "os.truncate", "os.chmod", "os.chown", "shutil.rmtree")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Broken(BaseException):
    """The law was broken; nothing that handles exceptions handles it."""


class Watch:
    """Raises Broken at what no artefact may cause, while it is armed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.armed, self.broken = str(folder), False, list[str]()
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._too_slow)
        signal.signal(signal.SIGALRM, self._too_slow)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in REFUSED_EVENTS:
            self._break(f"{event} {arguments}"[:300])
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._check_path(event, arguments[0])
        if event in WRITING_EVENTS:
            paths = [part for part in arguments if isinstance(part, str | bytes | os.PathLike)]
            folders = [part for part in arguments if isinstance(part, int)] or [-1]
            for path in paths:
                self._check_path(event, path, folders[-1])

    def _check_path(self, event: str, path: Any, folder: int = -1) -> None:
        """`folder`: the descriptor that a relative path starts from."""
        if isinstance(path, int):
            return
        start = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
        place = os.path.realpath(os.path.join(start, os.fsdecode(path)))
        inside = place == self.folder or place.startswith(f"{self.folder}/")
        if not inside and place != os.devnull and "__pycache__" not in place:
            self._break(f"{event} {place}")

    def _break(self, what: str) -> None:
        self.broken.append(what)
        raise Broken(what)

    def _too_slow(self, number: int, frame: FrameType | None) -> None:
        self._break(f"took more than {MAX_S if number == signal.SIGPROF else HANG_S} s")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Armed, for one artefact."""
        self.broken.clear()
        signal.setitimer(signal.ITIMER_PROF, MAX_S)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        self.armed = True
        try:
            yield
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.broken:  # and something handled it
            raise Broken(self.broken[0])


def resident_mb(name: str) -> float:
    """VmRSS, or VmHWM: the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def copied(intact: Path, to: Path) -> Path:
    """A copy whose files are links until one is replaced: the project never writes into a file."""
    shutil.copytree(intact, to, copy_function=os.link)
    return to


def run_target(target: Any, watch: Watch, root: Path, seed: int, count: int) -> dict[str, Any]:
    """Mutate and read `count` artefacts; the intact one first."""
    from effnet_ray.errors import EffnetRayError
    from support.fuzz_mutations import mutate

    intact, outcomes, failures = (
        root / "intact" / target.name.replace("/", "-"),
        Counter[str](),
        list[str](),
    )
    intact.mkdir(parents=True)
    target.make(intact)
    digest = fingerprint(intact)
    grown, slowest = 0.0, 0.0
    for number in range(-1, count):
        random = np.random.default_rng([seed, number + 1])
        folder = copied(intact, root / "work/artefact")
        if number >= 0:
            files = sorted(path for path in folder.glob(target.files) if path.is_file())
            file = files[int(random.integers(len(files)))]
            content = mutate(file.name, file.read_bytes(), random)
            file.unlink()
            file.write_bytes(content)
            if random.random() < 0.5:
                reseal(target, folder, file)
        forget_peak()
        before, began = resident_mb("VmRSS"), time.process_time()
        try:
            with watch.watching():
                became = outcome(target, folder, EffnetRayError)
            assert number >= 0 or became == target.intact, "the intact one is not read"
            outcomes[became] += number >= 0
        except (Exception, Broken) as error:
            where = "".join(traceback.format_exception(error)[-4:])
            failures.append(f"{target.name} {seed} {number}: {where[-1500:]}")
        slowest = max(slowest, time.process_time() - began)
        used = resident_mb("VmHWM") - before
        grown = max(grown, used)
        if used > MAX_MB:
            failures.append(f"{target.name} {seed} {number}: took {used:.0f} MB")
        if os.listdir(root / "work") != ["artefact"] or sorted(os.listdir(root)) != PARTS:
            failures.append(f"{target.name} {seed} {number}: wrote beside its folder")
        shutil.rmtree(root / "work/artefact")
    if fingerprint(intact) != digest:
        failures.append(f"{target.name} {seed}: wrote into a file in place")
    counts = {"read": 0, "refused": 0, **outcomes}
    return {**counts, "grown_mb": grown, "slowest_s": slowest, "failures": failures}


PARTS = ["intact", "temporary", "work"]


def fingerprint(folder: Path) -> int:
    return hash(tuple(sorted((str(f), f.read_bytes()) for f in folder.rglob("*") if f.is_file())))


def reseal(target: Any, folder: Path, file: Path) -> None:
    try:
        target.seal(folder, file)
    except Exception:  # a mutant that nobody can seal
        pass


def outcome(target: Any, folder: Path, refusal: type[Exception]) -> str:
    """Whether it was read or refused; anything else is raised."""
    try:
        target.read(folder)
    except refusal as error:
        text = str(error)
        assert text and "\n" not in text and "Traceback" not in text, text
        assert len(text) < 3000, f"{len(text)} characters: {text[:200]}"
        return "refused"
    return "read"


def main(seed: int, count: int, names: list[str]) -> dict[str, Any]:
    """All targets, or those named."""
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="effnet-fuzz-")))
    for part in PARTS:
        (root / part).mkdir()
    try:
        os.environ |= {"TMPDIR": str(root / "temporary"), "HOME": str(root / "temporary")}
        tempfile.tempdir = str(root / "temporary")
        return fuzz(root, seed, count, names)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def fuzz(root: Path, seed: int, count: int, names: list[str]) -> dict[str, Any]:
    import ray.data  # registers its types with Arrow, as in every worker  # noqa: F401

    from support.fuzz_targets import TARGETS

    warnings.simplefilter("ignore")
    logging.disable()
    watch, result = Watch(root), dict[str, Any]()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, resource.RLIM_INFINITY))
    for target in TARGETS:
        if not names or target.name in names:
            result[target.name] = run_target(target, watch, root, seed, count)
    return result


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
