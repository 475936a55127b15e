"""Jobs on the machines that users have: locales, users, homes, proxies, paths, terminals."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import machines
from support.faults import Faults, proxy
from support.jobs import ROOT
from support.machines import (
    DEAD,
    MACHINES,
    OTHER_USERS,
    PROXIES,
    WITH_RAY,
    WITHOUT_RAY,
    Assets,
    Machine,
    assert_for_people,
    run,
)
from support.releases import released
from support.servers import fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.cli.main import JOBS
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack

NO_UTF8 = MACHINES["no UTF-8"](Path())
HERE = Machine()


@pytest.fixture(scope="module")
def assets() -> Iterator[Assets]:
    """Images, a data set and a store in a folder that everybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="effnet-machines-"))
    folder.chmod(0o755)
    draw = np.random.default_rng(0)
    for name in ("0", "1", "2", "3"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    pack(str(folder / "images"), str(folder / "data"), Packing(eval_fraction=0.34))
    released(folder)
    yield Assets(folder)
    shutil.rmtree(folder)


@pytest.fixture
def out() -> Iterator[Path]:
    """A folder that everybody may write to."""
    folder = Path(tempfile.mkdtemp(prefix="effnet-out-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def machine_of(name: str, folder: Path) -> Machine:
    if name in OTHER_USERS and not machines.can_change_user():
        pytest.skip("this process cannot run this Python as another user")
    return MACHINES[name](folder)


QUICK = {
    *((machine, "list") for machine in MACHINES),
    *((machine, "pack") for machine in ("no UTF-8", "other user", "stale RAY_ADDRESS")),
}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.long)
        for case in itertools.product(MACHINES, WITHOUT_RAY)
    ],
)
def test_a_job_works_on_every_machine_or_says_why_not(
    assets: Assets, out: Path, name: str, path: str
) -> None:
    job, flags = WITHOUT_RAY[path]
    answer = run(machine_of(name, out), job, flags(assets, out))
    assert_for_people(answer)
    refused = name == "no home" or (name, path) == ("stale RAY_ADDRESS", "pack")
    unwritable = path == "check" and name in OTHER_USERS  # the store belongs to somebody else
    missing = path in ("serve", "predict")  # birds@v2
    assert answer.code == (2 if refused or missing else 1 if unwritable else 0), answer


@pytest.mark.parametrize("job", JOBS)
def test_help_is_printed_in_any_terminal(job: str) -> None:
    for machine in ("LANG=C", "narrow"):
        answer = run(MACHINES[machine](Path()), job, ["--help"])
        assert answer.code == 0 and "usage: " in answer.out, answer
        assert answer.err == "", answer


def test_a_user_without_a_home_is_told_to_set_it() -> None:
    if not machines.can_change_user():
        pytest.skip("this process cannot run this Python as another user")
    answer = run(MACHINES["no home"](Path()), "models", ["list", "--store", "/tmp"])
    says = "models: this user has no home folder: set HOME to a folder that you can write\n"
    assert (answer.code, answer.err) == (2, says)


CLOSED = {
    "store": ("models", lambda _, closed: ["list", "--store", f"{closed}/store"]),
    "out": ("pack", lambda assets, closed: ["--source", assets.images, "--out", f"{closed}/data"]),
    "source": ("pack", lambda _, closed: ["--source", f"{closed}/photos", "--out", "packed"]),
    "page": ("data", lambda assets, closed: [assets.data, "--page", f"{closed}/page.html"]),
}


@pytest.mark.parametrize("flag", CLOSED)
def test_a_folder_that_this_user_may_not_enter_is_one_sentence(
    assets: Assets, out: Path, flag: str
) -> None:
    machine, (job, flags) = machine_of("other user", out), CLOSED[flag]
    closed = out / "closed"
    closed.mkdir(mode=0o700)
    answer = run(machine, job, flags(assets, closed))
    assert_for_people(answer)
    assert answer.code == 2 and "check the file's permissions" in answer.err, answer


# --- paths


def oddly_named(assets: Assets, folder: Path) -> Assets:
    """The same in a folder, and with a class, whose names are not ASCII."""
    odd = folder / "mit Blank ü 😀"
    shutil.copytree(assets.folder, odd)
    (odd / "images/3").rename(odd / "images/Käfer 😀")
    return Assets(odd)


@pytest.mark.parametrize(
    "machine",
    [pytest.param(HERE, id="UTF-8", marks=pytest.mark.long), pytest.param(NO_UTF8, id="no UTF-8")],
)
def test_names_may_have_blanks_umlauts_and_emoji(
    assets: Assets, tmp_path: Path, machine: Machine
) -> None:
    odd = oddly_named(assets, tmp_path)
    for path in ("pack", "data", "list"):
        job, flags = WITHOUT_RAY[path]
        answer = run(machine, job, flags(odd, odd.folder / "out"))
        assert_for_people(answer)
        assert answer.code == 0, answer
        told = json.loads(answer.out.splitlines()[-1])
        assert path != "pack" or "Käfer 😀" in told["classes"]


def test_paths_may_be_relative_and_symbolic_links(assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(assets.folder)
    for path in ("pack", "list"):
        job, flags = WITHOUT_RAY[path]
        answer = run(Machine(folder=tmp_path), job, flags(Assets(Path("link")), Path("out")))
        assert answer.code == 0, answer
    assert (tmp_path / "out/packed/manifest.json").exists()


@pytest.mark.parametrize("path", ["pack", "list"])
def test_a_path_that_is_no_utf8_is_refused(tmp_path: Path, path: str) -> None:
    job, flags = WITHOUT_RAY[path]
    answer = run(HERE, job, flags(Assets(Path(os.fsdecode(b"/tmp/caf\xe9"))), tmp_path))
    assert_for_people(answer)
    assert answer.code == 2 and "caf\\udce9" in answer.err and "is not UTF-8" in answer.err


def test_a_deleted_current_folder_is_said() -> None:
    with tempfile.TemporaryDirectory() as parent:
        script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
        command = ["sh", "-c", script, "sh", tempfile.mkdtemp(dir=parent), sys.executable]
        done = subprocess.run(
            [*command, str(ROOT / "jobs/models.py"), "list", "--store", "x"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    says = "models: the current folder was deleted: change to another one"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, says)


# --- the output


def in_shell(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's line with "$@" as the command of a job, all pipes' failures reported."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}", "bash", sys.executable, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["jobs/evaluate.py", "effnet-ray", "jobs/models.py"])
def test_whoever_reads_the_output_may_leave_early(command: str) -> None:
    start = "from effnet_ray.cli.main import run; raise SystemExit(run())"
    flags = ["-c", start] if command == "effnet-ray" else [command]
    done = in_shell('"$@" --help | (exec 0<&-)', *flags)
    assert done.stderr == "" and done.returncode in (1, 2), done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("flags", [["--help"], ["list", "--store", "/nowhere"]], ids=" ".join)
def test_a_result_that_cannot_be_printed_is_said(flags: list[str]) -> None:
    done = in_shell('"$@" > /dev/full', "jobs/models.py", *flags)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "models: this machine has reached a limit ([Errno 28] No space left on device): free some "
        "space, or choose another folder"
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_job_needs_no_standard_streams(tmp_path: Path, closed: str) -> None:
    done = in_shell(f'"$@" {closed}', "jobs/models.py", "list", "--store", str(tmp_path))
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr


# --- proxies


def s3_jobs(bucket: str, out: str) -> list[tuple[str, list[str]]]:
    return [
        ("models", ["list", "--store", f"{bucket}/store"]),
        ("pack", ["--source", f"{bucket}/images", "--out", f"{bucket}/{out}"]),
    ]


@pytest.fixture
def bucket(moto: str, assets: Assets) -> Iterator[str]:
    """A bucket with the assets."""
    with s3_environment(moto):
        name = fresh_bucket()
        for folder in ("images", "store"):
            for path in storage.sizes(str(assets.folder / folder)):
                storage.upload(assets.folder / folder / path, f"{name}/{folder}/{path}")
        yield name


@pytest.mark.parametrize("path", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_server_in_no_proxy_is_reached_without_the_proxy(bucket: str, path: int) -> None:
    around = Machine({**dict.fromkeys(PROXIES, DEAD), "no_proxy": "127.0.0.1", "NO_PROXY": None})
    job, flags = s3_jobs(bucket, "around")[path]
    assert run(around, job, flags).code == 0


@pytest.mark.long
def test_a_proxy_that_does_not_answer_is_named(bucket: str) -> None:
    for job, flags in s3_jobs(bucket, "dead"):
        answer = run(Machine(dict.fromkeys(PROXIES, DEAD)), job, flags)
        assert_for_people(answer)
        assert answer.code == 2
        assert "no answer from the proxy: check the proxy 127.0.0.1:1 of HTTP_PROXY" in answer.err
        assert "or add 127.0.0.1 to NO_PROXY" in answer.err


ARROW_READS = """
import sys
from effnet_ray import storage
files, path = storage.arrow_filesystem(sys.argv[1])
print(len(storage.read_bytes(sys.argv[1])), files.open_input_file(path).size())
"""


def test_both_s3_libraries_go_through_the_proxy(moto: str, bucket: str) -> None:
    requests = list[str]()

    def count(method: str, path: str) -> bool:
        requests.append(method)
        return False

    with proxy(moto) as server:
        server.faults = Faults(("500",), hits=count)
        environment = {**os.environ, **dict.fromkeys(PROXIES, server.endpoint), "PYTHONUTF8": "1"}
        environment.pop("NO_PROXY", None), environment.pop("no_proxy", None)
        done = subprocess.run(
            [sys.executable, "-c", ARROW_READS, f"{bucket}/images/0/0.png"],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    read, size = done.stdout.split()
    assert read == size
    assert requests[requests.index("GET") :] == ["GET", "HEAD"]  # the last is Arrow's


# --- Ray


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param(name, path, marks=pytest.mark.long)
        for name in MACHINES
        for path in (WITH_RAY if name in ("no UTF-8", "other user") else ("predict",))
    ],
)
def test_a_job_with_ray_works_on_every_machine_or_says_why_not(
    assets: Assets, out: Path, name: str, path: str
) -> None:
    job, flags = WITH_RAY[path]
    answer = run(machine_of(name, out), job, flags(assets, out))
    assert_for_people(answer)
    no_home = ("read-only home", "missing home", "nameless user", "no home")
    assert answer.code == (2 if name in no_home else 0), answer
    assert name not in no_home or "set HOME to a folder that you can write" in answer.sentence


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("path", WITH_RAY)
def test_a_job_with_ray_takes_odd_names_in_an_ascii_locale(
    assets: Assets, tmp_path: Path, path: str
) -> None:
    odd, (job, flags) = oddly_named(assets, tmp_path), WITH_RAY[path]
    answer = run(NO_UTF8, job, flags(odd, odd.folder / "out"))
    assert_for_people(answer)
    assert answer.code == 0, answer


@pytest.mark.ray
@pytest.mark.long
def test_two_checkouts_may_train_on_the_sample_at_once(tmp_path: Path) -> None:
    drivers = []
    for name in ("one", "two"):
        for folder in ("effnet_ray", "jobs"):
            shutil.copytree(ROOT / folder, tmp_path / name / folder)
        drivers.append(
            subprocess.Popen(
                [sys.executable, "jobs/finetune.py", "--local", "--workers", "1", "--name", name,
                 "--epochs", "1", "--limit", "64"],
                cwd=tmp_path / name,
                env={**os.environ, "PYTHONPATH": str(tmp_path / name), "HOME": str(tmp_path)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for driver in drivers:
        out, err = driver.communicate(timeout=280)
        assert_for_people(machines.Answer(driver.returncode, out, err))
        assert driver.returncode == 0, err


# --- Ray that cannot start

STARTS = """
import sys
from effnet_ray import Placement
from effnet_ray.cli.main import main
from effnet_ray.runtime import session

def job(_):
    session.connect(Placement(workers="1"), local=True, verbose=False)
    return {"ok": True}

sys.exit(main(job, []))
"""


def start_ray(machine: Machine, program: str = STARTS) -> machines.Answer:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **machine.environment}
    done = subprocess.run(
        [*machine.prefix, sys.executable, "-c", program],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    return machines.Answer(done.returncode, done.stdout, done.stderr)


def assert_cannot_start(answer: machines.Answer, *says: str) -> None:
    assert (answer.code, answer.out) == (2, ""), answer
    assert len(answer.err.splitlines()) == 1, answer
    assert all(text in answer.err for text in ("Ray cannot start (", *says)), answer


@pytest.mark.parametrize(
    "options", ["size=100k", pytest.param("size=1g,nr_inodes=12", marks=pytest.mark.long)]
)
def test_a_full_disk_of_rays_folder_is_said(out: Path, options: str) -> None:
    if not machines.can_mount():
        pytest.skip("this process cannot mount a small disk")
    machine = Machine({"RAY_TMPDIR": str(out / "d")}, machines.small_disk(out / "d", options))
    on_another = "free some space, or set RAY_TMPDIR to a folder on another disk"
    assert_cannot_start(start_ray(machine), on_another)


def test_a_folder_of_another_users_ray_is_said(out: Path) -> None:
    machine = machine_of("other user", out)
    (out / "ray").mkdir(mode=0o755)
    machine.environment["RAY_TMPDIR"] = str(out)
    assert_cannot_start(start_ray(machine), "set RAY_TMPDIR to a folder that you can write to")


@pytest.mark.parametrize("name", ["read-only home", "missing home", "nameless user"])
def test_a_home_that_ray_cannot_write_to_is_said(out: Path, name: str) -> None:
    answer = start_ray(machine_of(name, out))
    assert_cannot_start(answer, "set HOME to a folder that you can write to")


STOPS_RAYLETS = """
import sys, threading, time, psutil

def stop(count):
    stopped = set()
    while len(stopped) < count:
        for child in psutil.Process().children():
            if child.name() == "raylet" and child.pid not in stopped:
                child.suspend()  # as on a machine that has no time for it
                stopped.add(child.pid)
        time.sleep(0.002)

threading.Thread(target=stop, args=(COUNT,), daemon=True).start()
"""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("slow", [1, 2])
def test_ray_that_is_slow_to_start_is_started_once_more(slow: int) -> None:
    answer = start_ray(HERE, STOPS_RAYLETS.replace("COUNT", str(slow)) + STARTS)
    if slow == 1:
        assert (answer.code, answer.out, answer.err) == (0, '{"ok": true}\n', "")
    else:
        assert_cannot_start(answer, "close other programs that keep this machine busy")
