"""The pages agree with the program: links, paths, commands, flags and error messages.

The test that runs the commands is `long`; `make docs-check` includes it.
"""

import ast
import contextlib
import io
import json
import os
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from support.layers import DOORS, ORDER
from support.sources import files, write_hugging_face

ROOT = Path(__file__).parents[1]
FIRST = ("data", "training", "sweeps", "inference")
"""Pages whose commands make what those of the others use, in this order."""
PAGES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    *(ROOT / f"docs/{name}.md" for name in FIRST),
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.stem not in FIRST),
    ROOT / "cluster/README.md",
    ROOT / "recipes/README.md",
]
JOBS = {path.stem for path in (ROOT / "jobs").glob("*.py")}
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^ *```$", re.M | re.S)
ROOTS = ("effnet_ray", "jobs", "tests", "benchmarks", "cluster", "recipes", "docs")
OTHER_TOOLS = {"--working-dir", "--head", "--generate", "--logdir", "--data-binary"}
"""Flags in the pages that are not ours: Ray's, TensorBoard's and curl's."""


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    page: Path
    kind: str
    """What follows ```; `sh` alone: its commands run on a laptop."""
    text: str

    @property
    def commands(self) -> list[str]:
        """The block's lines without comments."""
        lines = (re.sub(r"(^|\s+)# .*", "", line).strip() for line in self.text.splitlines())
        return [line for line in lines if line]


def blocks() -> Iterator[Block]:
    """All fenced blocks of all pages."""
    for page in PAGES:
        for _, kind, text in FENCE.findall(page.read_text()):
            yield Block(page, kind.strip(), text)


SHELL = [block for block in blocks() if block.kind.split()[:1] == ["sh"]]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def job_of(command: str) -> tuple[str, list[str]] | None:
    """The job that a command runs and its arguments; None for commands of other tools."""
    words = shlex.split(command)
    for index, word in enumerate(words):
        if word == "effnet-ray" and words[:1] != ["kubectl"]:
            return words[index + 1], words[index + 2 :]
        if word == "python" and words[index + 1].startswith("jobs/"):
            return Path(words[index + 1]).stem, words[index + 2 :]
    return None


@cache
def help_text(job: str, *subcommand: str) -> str:
    """What the job prints with --help."""
    out, before = io.StringIO(), sys.argv
    sys.argv = [f"jobs/{job}.py", *subcommand, "--help"]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    finally:
        sys.argv = before
    return out.getvalue()


@cache
def flags(job: str, *subcommand: str) -> set[str]:
    """The flags of a job, or of one of its subcommands."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", help_text(job, *subcommand)))


@cache
def all_flags() -> set[str]:
    """The flags of all jobs and of the subcommands of `models`."""
    listed = re.search(r"\{([a-z,]+)\}", help_text("models"))
    assert listed
    own = set().union(*(flags(job) for job in JOBS))
    return own.union(*(flags("models", name) for name in listed[1].split(",")))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def messages() -> list[str]:
    """Every text of the package, `…` in place of what is filled in."""
    result = []
    for path in (ROOT / "effnet_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                result.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                result.append(node.value)
    return result


def pattern(message: str) -> re.Pattern[str]:
    """What a message of the page, with `…` for anything, looks like in the package."""
    parts = (re.escape(part.strip()) for part in message.split("…") if part.strip())
    return re.compile(".*?".join(parts), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_exists(page: Path) -> None:
    for target in re.findall(r"(?<=\]\()[^)\s]+|(?<=src=\")[^\"]+", prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(rf"(?<![\w/.])(?:{'|'.join(ROOTS)})/[\w./-]*\w", page.read_text()):
        candidates = [ROOT / name, *ROOT.glob(f"{name}.*")]
        assert name == "jobs/NAME.py" or any(path.exists() for path in candidates), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?<=[`\s(])--[a-z][a-z0-9-]*", text))
    others = {flag for flag in named if flag in OTHER_TOOLS}
    lines = [line for line in text.splitlines() if re.search(r"\b(uv|pip|docker|kubectl) ", line)]
    foreign = set(re.findall(r"--[a-z][a-z0-9-]*", "\n".join(lines)))
    assert named - others - foreign - all_flags() == set()


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.page.stem)
def test_every_command_has_only_flags_of_its_job(block: Block) -> None:
    for command in block.commands:
        parsed = job_of(command)
        if parsed is None:
            continue
        job, arguments = parsed
        assert job in JOBS, command
        subcommand = arguments[:1] if job == "models" else []
        used = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert used <= flags(job, *subcommand), command


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join(p.read_text() for p in PAGES[:1]), re.M)
    assert named and set(named) <= targets


@pytest.mark.parametrize("block", [b for b in blocks() if b.kind == "python"], ids=str)
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module == "effnet_ray":
            exec(compile(ast.Module([node], []), block.page.name, "exec"), {})


def table(heading: str) -> list[list[str]]:
    """The cells of the table of ARCHITECTURE.md that begins with this row."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = text.partition(heading)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_architecture_lists_the_modules_in_their_order() -> None:
    listed = [name.strip("`").replace("/", ".") for name, _ in table("| module | is |")]
    assert listed == list(ORDER)


def test_architecture_says_who_may_import_which_library() -> None:
    doors = {
        library.strip("`"): [re.sub("/$", ".", name).replace("/", ".")
                             for name in re.findall("`([^`]+)`", modules)]
        for library, modules in table("| library | is imported by |")
    }  # fmt: skip
    assert doors == {library: modules.split() for library, modules in DOORS.items() if modules}


def test_every_test_that_architecture_names_exists() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert {name for name in named if not (ROOT / f"tests/{name}.py").exists()} == set()


def test_a_command_that_does_not_run_on_a_laptop_says_so() -> None:
    for block in SHELL:
        _, _, condition = block.kind.partition(" ")
        assert condition in ("", *CONDITIONS), block
        if condition:
            assert CONDITIONS[condition].search(prose(block.page)), block


CONDITIONS = {
    "needs a cluster": re.compile(r"start a cluster|need an AWS account|need KubeRay"),
    "needs a server": re.compile("needs a running MLflow server"),
    "runs until Ctrl-C": re.compile("runs until Ctrl-C"),
    "slow": re.compile("13 minutes"),
    "needs 20 eval images": re.compile("20 or more eval images"),
}
"""What keeps a block's commands from `test_the_commands_run`, and what its page says about it."""


def test_every_message_of_the_troubleshooting_page_is_in_the_package() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    shown = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(shown) > 50
    texts = messages()
    assert [message for message in shown if not any(map(pattern(message).search, texts))] == []


# --- running the commands

SMALL = {
    "finetune": "--variant b0 --epochs 2 --limit 12 --batch-size 4 --image-size 32 --workers 1",
    "tune": "--variants b0 --trials 1 --epochs 2 --limit 12 --batch-size 4 --image-size 32 "
    "--workers 1",
    "evaluate": "--workers 1",
    "predict": "--workers 1",
}
"""Flags that a job gets in addition: a later flag replaces an earlier one."""


def laptop_commands() -> list[str]:
    """The jobs' commands that run on a laptop, in the order of the pages, each once."""
    commands = [c for block in SHELL if block.kind == "sh" for c in block.commands]
    return [command for command in dict.fromkeys(commands) if job_of(command)]


TRIED = {
    "train": ("runs", "SIGKILLs"), "plain": ("runs", "SIGKILLs"), "sweep": ("sweeps", "SIGKILLs"),
    "pack": ("packings", "SIGKILLs"), "publish": ("rounds", "crashes"),
}  # fmt: skip
"""Arm of `benchmarks/chaos.py` → what docs/reliability.md counts: its runs, and what hit them."""


@pytest.mark.parametrize("arm", TRIED)
def test_the_numbers_of_what_was_tried_are_those_on_record(arm: str) -> None:
    record = (ROOT / f"benchmarks/results/chaos/{arm}.jsonl").read_text()
    runs = [json.loads(line) for line in record.splitlines()]
    hits = [run.get("kills", run.get("crashes")) for run in runs]
    counts = len(runs), sum(len(hit) if isinstance(hit, list) else hit for hit in hits)
    (row,) = re.findall(
        rf"\| ([^|]+) \| `python benchmarks/chaos.py {arm}` \|",
        (ROOT / "docs/reliability.md").read_text(),
    )
    expected = (
        f"{count:,} {noun if count > 1 else noun.removesuffix('s')}"
        for count, noun in zip(counts, TRIED[arm], strict=True)
    )
    assert row == ", ".join(expected)


def test_effnet_ray_is_the_command_that_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"effnet-ray": "effnet_ray.cli.main:run"}


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `effnet-ray …` of a page in this folder, as a small one."""
    job, flags = job_of(command) or ("", [])
    program = "import sys; from effnet_ray.cli.main import run; sys.exit(run())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("EFFNET_", "RAY_"))}
    return subprocess.run(
        [sys.executable, "-c", program, job, *flags, *SMALL.get(job, "").split()],
        cwd=folder,
        env={
            **environment,
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "EFFNET_WEIGHTS": str(folder / "mirror"),
            "RAY_ADDRESS": "local",  # not a Ray that runs on this machine for something else
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def prepare(photographs: Path, folder: Path) -> None:
    """Make what the pages suppose: photos/, tables of them, hf/, and a mirror of weights."""
    shutil.copytree(photographs, folder / "photos")
    for name in ("cluster", "recipes"):
        shutil.copytree(ROOT / name, folder / name)
    images = files(folder / "photos")
    rows = [(path.relative_to(folder).as_posix(), path.parent.name) for path in images]
    lines = [f"{path},{label},{number // 2}" for number, (path, label) in enumerate(rows)]
    (folder / "photos.csv").write_text("\n".join(["path,label,patient", *lines]))
    lines = [f"{path},{label}{'|tall' if number % 2 else ''}"
             for number, (path, label) in enumerate(rows)]  # fmt: skip
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]))
    random.Random(0).shuffle(images)
    for number, path in enumerate(images):
        target = folder / "mixed" / path.parent.name / f"{number:02d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "hf").mkdir()
    write_hugging_face(folder / "mixed", folder / "hf", splits=("train", "validation"))
    (folder / "mirror").mkdir()
    state = timm.create_model("tf_efficientnet_b0").state_dict()
    for tag in ("ns_jft_in1k", "aa_in1k", "in1k"):
        save_file(state, folder / f"mirror/tf_efficientnet_b0.{tag}.safetensors")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_commands_run(photographs: Path, tmp_path: Path) -> None:
    prepare(photographs, tmp_path)
    failed = []
    for command in laptop_commands():
        done = run_command(command, tmp_path)
        print(f"{command}: {done.returncode}", flush=True)
        if done.returncode:
            failed.append(f"{command}\n{done.stderr}")
        else:
            json.loads(done.stdout.splitlines()[-1])
    assert not failed, "\n".join(failed)
