"""`--data` takes images: they are packed once, and found again while they do not change."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from support.hub import client_environment, serving
from support.sources import write_hugging_face

from effnet_ray import storage
from effnet_ray.cli.check import check_job
from effnet_ray.cli.data_set import find_data
from effnet_ray.cli.main import main
from effnet_ray.cli.terminal import Terminal
from effnet_ray.data import manifest as manifests
from effnet_ray.errors import DatasetError
from effnet_ray.packing import hub, on_demand, shard_jobs
from effnet_ray.packing.pack import pack
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.train import run_record


@pytest.fixture
def images(photographs: Path, tmp_path: Path) -> Path:
    """The photographs, to change."""
    return Path(shutil.copytree(photographs, tmp_path / "images"))


def no_ray(_: Placement) -> None:
    raise AssertionError("Ray is not needed to pack on one machine")


def packed_uri(data: object, runs: object, *, name: str = "") -> str:
    """What a job does before it trains."""
    with Terminal() as terminal:
        return find_data(str(data), str(runs), terminal, name=name).pack(terminal, no_ray)


def folders(runs: Path) -> list[Path]:
    return sorted((runs / on_demand.FOLDER).iterdir())


def test_images_are_packed_once_as_pack_does_and_found_again(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    uri = packed_uri(images, runs)
    assert folders(runs) == [Path(uri)]
    expected = pack(str(images), str(tmp_path / "expected"))
    assert manifests.load(uri).fingerprint == expected.fingerprint
    assert "packed 24 images" in capfd.readouterr().err
    (images / ".DS_Store").write_bytes(b"a viewer's notes")
    (images / "roof/proposed.csv").write_bytes(b"what evaluate has written")
    assert packed_uri(f"{images}/", runs) == uri
    assert "which has not changed" in capfd.readouterr().err
    assert packed_uri(uri, runs) == packed_uri(f"{uri}/manifest.json", runs)[: len(uri)] == uri


@pytest.mark.parametrize("change", ["more", "less", "other content", "same size"])
def test_a_changed_source_is_packed_anew(images: Path, tmp_path: Path, change: str) -> None:
    runs, file = tmp_path / "runs", min(images.rglob("*.jpg"))
    before = packed_uri(images, runs)
    if change == "more":
        shutil.copy(file, file.with_name("more.jpg"))
    elif change == "less":
        file.unlink()
    else:
        data = max(images.rglob("*.png")).read_bytes()
        file.write_bytes(data if change == "other content" else data[: file.stat().st_size])
    after = packed_uri(images, runs)
    assert after != before and folders(runs) == sorted([Path(before), Path(after)])
    assert manifests.load(after).fingerprint != manifests.load(before).fingerprint


def test_a_bucket_is_packed_once_by_its_etags(images: Path, s3: str) -> None:
    for path in images.rglob("*.*"):
        storage.upload(path, f"{s3}/photos/{path.relative_to(images)}")
    uri = packed_uri(f"{s3}/photos", f"{s3}/runs")
    first = min(images.rglob("*.*"))
    storage.upload(first, f"{s3}/photos/{first.relative_to(images)}")  # the same, later
    assert packed_uri(f"{s3}/photos", f"{s3}/runs") == uri
    storage.write_bytes(f"{s3}/photos/roof/more", b"1")
    assert packed_uri(f"{s3}/photos", f"{s3}/runs") != uri


def test_a_table_is_packed_anew_when_it_or_an_image_changes(images: Path, tmp_path: Path) -> None:
    table, runs = images / "table.csv", tmp_path / "runs"
    files = sorted(path for path in images.rglob("*.*"))
    lines = [f"{path.relative_to(images)},{path.parent.name}" for path in files]
    table.write_text("\n".join(["path,label", *lines]))
    uris = [packed_uri(table, runs), packed_uri(table, runs)]
    os.utime(files[0], ns=(1, 1))
    uris.append(packed_uri(table, runs))
    table.write_text("\n".join(["path,label", *lines[1:]]))
    uris.append(packed_uri(table, runs))
    assert uris[0] == uris[1] and len(set(uris)) == 3


def test_a_parquet_file_of_images_is_a_source(images: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    write_hugging_face(images, tmp_path / "hf")
    file = tmp_path / "hf/data/train-00000-of-00001.parquet"
    uri = packed_uri(file, tmp_path / "runs")
    assert manifests.load(uri).images == {"train": 18, "eval": 6}
    assert packed_uri(file, tmp_path / "runs") == uri


def run_of(data: str, runs: Path, name: str) -> None:
    """Record a run that has begun with the data."""
    recipe, manifest = Recipe(weights="none"), manifests.load(data)
    spec = recipe.variant_spec.input_spec()
    run = run_record.Run(
        name=name,
        recipe=recipe.resolved(spec, workers=1, on_gpu=False),
        spec=spec,
        weights="none",
        weights_sha256="",
        weights_head=0,
        data=data,
        fingerprint=manifest.fingerprint,
        classes=manifest.classes,
    )
    run_record.create(run, str(runs / name))


def test_a_run_keeps_the_images_that_it_began_with(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    before = packed_uri(images, runs)
    run_of(before, runs, "mine")
    min(images.rglob("*.jpg")).unlink()
    assert packed_uri(images, runs, name="mine") == before
    assert "'mine' goes on with its images" in capfd.readouterr().err
    assert packed_uri(images, runs, name="another") != before
    shutil.copytree(images, tmp_path / "others")
    assert packed_uri(tmp_path / "others", runs, name="mine") != before
    shutil.rmtree(before)  # nothing to go on with
    assert packed_uri(images, runs, name="mine") != before


def test_an_interrupted_packing_is_continued_by_the_same_command(
    images: Path, tmp_path: Path
) -> None:
    with Terminal() as terminal:
        result = find_data(str(images), str(tmp_path / "runs"), terminal)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        raise Killed

    assert result.source
    with pytest.raises(Killed):
        result.source.make(kill)
    assert not result.source.is_ready
    written = {path: path.stat().st_mtime_ns for path in Path(result.uri).glob("*/*.parquet")}
    assert written and packed_uri(images, tmp_path / "runs") == result.uri
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    (Path(result.uri) / manifests.NAME).unlink()
    (Path(result.uri) / "packing").mkdir()
    (Path(result.uri) / "packing/begun.json").write_bytes(b"")
    with pytest.raises(DatasetError, match="finish an interrupted packing"):
        manifests.load(packed_uri(result.uri, tmp_path / "runs"))


def test_another_programs_manifest_makes_no_data_set(images: Path, tmp_path: Path) -> None:
    (images / "manifest.json").write_text('{"foo": 1}')
    assert manifests.load(packed_uri(images, tmp_path / "runs")).images == {"train": 18, "eval": 6}
    (images / "manifest.json").write_text("damaged")
    assert not on_demand.is_source(str(images))


def test_a_table_may_be_named_manifest(images: Path, tmp_path: Path) -> None:
    files = sorted(images.rglob("*.*"))
    lines = [f"{path.relative_to(images)},{path.parent.name}" for path in files]
    (images / "manifest.csv").write_text("\n".join(["path,label", *lines]))
    uri = packed_uri(images / "manifest.csv", tmp_path / "runs")
    assert manifests.load(uri).images == {"train": 18, "eval": 6}


def test_a_job_that_finds_its_work_done_by_another_uses_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one done deletes the folder that both work in."""
    (tmp_path / "hf").mkdir()
    write_hugging_face(images, tmp_path / "hf")
    source = on_demand.find(str(tmp_path / "hf"), str(tmp_path / "runs"))
    done = []

    def overtaken(job: Any) -> Any:
        if not done:
            done.append(True)
            source.make()
        return original(job)

    original = shard_jobs.write_shard
    monkeypatch.setattr(shard_jobs, "write_shard", overtaken)
    assert source.make() == manifests.load(source.uri)
    assert not (Path(source.uri) / "packing").exists()


def test_runs_inside_of_the_source_are_refused(images: Path) -> None:
    with pytest.raises(DatasetError, match=r"--runs .* is inside of --data .*every run would"):
        packed_uri(images, images / "runs")


def test_flags_that_packing_would_need_are_named_with_its_command(
    images: Path, tmp_path: Path
) -> None:
    table = images / "table.csv"
    table.write_text("file,label\ndahlia/1.jpg,dahlia\n")
    with pytest.raises(DatasetError, match=r"--path-column.*: effnet-ray pack --source .*--data"):
        packed_uri(table, tmp_path / "runs")


def test_advice_names_the_flag_of_the_job(images: Path, tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    images.rename(tmp_path / "above/images")
    (tmp_path / "above/images").rename(tmp_path / "above/flowers")
    with pytest.raises(DatasetError, match=r"in folders of flowers/: pass --data .*/flowers"):
        packed_uri(tmp_path / "above", tmp_path / "runs")


def test_check_lists_the_images_and_packs_nothing(images: Path, tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("runs", "store")}
    arguments = [word for name, uri in places.items() for word in (f"--{name}", uri)]
    line = check_job(["--data", str(images), "--weights", "none", *arguments])
    (result,) = (f for f in line["findings"] if f["check"] == "data")
    assert line["ok"] and "24 images of 3 classes, not packed yet" in result["found"]
    assert "the first run packs it into" in result["do"]
    assert not (tmp_path / "runs/packed").exists()
    for path in images.glob("*/*.*"):
        shutil.copy(path, images)
    line = check_job(["--data", str(images), "--weights", "none", *arguments])
    assert not line["ok"]


def test_nothing_is_packed_for_a_run_that_could_not_begin(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from effnet_ray.cli.finetune import finetune_job

    arguments = ["--data", str(images), "--runs", str(tmp_path / "runs")]
    arguments += ["--store", str(tmp_path / "store"), "--weights-mirror", str(tmp_path / "none")]
    assert main(finetune_job, arguments) == 2
    assert "do not exist: check --weights and --weights-mirror" in capsys.readouterr().err.replace(
        "\n", " "
    )
    assert not (tmp_path / "runs/packed").exists()


# --- the hub


@contextmanager
def hub_of(files: dict[str, bytes], converted: dict[str, bytes] | None = None) -> Iterator[str]:
    """A server that speaks the hub's API, with one data set, `owner/pets`."""
    commits = {"main": "a" * 40, hub.CONVERTED: "b" * 40}
    contents = {commits["main"]: files, commits[hub.CONVERTED]: converted or {}}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            api = "/api/datasets/owner/pets"
            if path == api or path.startswith(f"{api}/revision/"):
                revision = path[len(f"{api}/revision/") :] or "main"
                commit = commits.get(revision, revision)
                names = [{"rfilename": name} for name in contents.get(commit, {})]
                record = {"id": "owner/pets", "sha": commit, "siblings": names}
                self.send(json.dumps(record).encode(), commit, body=body)
            elif path.startswith(f"{api}/tree/"):
                commit = path[len(f"{api}/tree/") :].split("/")[0]
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                    for name, data in contents[commit].items()
                ]
                self.send(json.dumps(entries).encode(), commit, body=body)
            elif path.startswith("/datasets/owner/pets/resolve/"):
                commit, _, name = path[len("/datasets/owner/pets/resolve/") :].partition("/")
                self.send(contents[commit][name], commit, body=body)
            else:
                self.send_error(404)

        def send(self, data: bytes, commit: str, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{digest(data)}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as endpoint:
        yield endpoint


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


PACK = """
import json, sys
from effnet_ray.cli.data_set import find_data
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import DatasetError
with Terminal() as terminal:
    try:
        for address in sys.argv[2:]:
            print(find_data(address, sys.argv[1], terminal).pack(terminal, None))
    except DatasetError as error:
        sys.exit(f"refused: {error}")
"""


def from_hub(
    endpoint: str, folder: Path, *addresses: str
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Pack addresses in a fresh process: the hub's client reads its endpoint when imported."""
    environment = client_environment(endpoint, folder)
    command = [sys.executable, "-c", PACK, str(folder / "runs"), *addresses]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return ended.stdout.split(), ended


def shards(images: Path, tmp_path: Path) -> dict[str, bytes]:
    """The images in Parquet files, as the hub has them."""
    (tmp_path / "hf").mkdir()
    write_hugging_face(images, tmp_path / "hf", splits=("train", "test"))
    return {path.name: path.read_bytes() for path in (tmp_path / "hf/data").iterdir()}


def test_a_data_set_of_the_hub_is_fetched_and_packed_once(images: Path, tmp_path: Path) -> None:
    files = {f"data/{name}": data for name, data in shards(images, tmp_path).items()}
    files |= {"README.md": b"# pets", "assets/cover.png": b"not fetched"}
    with hub_of(files) as endpoint:
        address = "hf://datasets/owner/pets"
        uris, ended = from_hub(endpoint, tmp_path, address, f"{address}@main", f"{address}/data")
    assert ended.returncode == 0, ended.stderr
    manifest = manifests.load(uris[0])
    assert manifest.classes == ("dahlia", "garden", "roof")
    assert sum(manifest.images.values()) == 24 and manifest.images["test"] == 12
    assert len(set(uris)) == 1 and ended.stderr.count("packed 24 images") == 1
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert "README.md" not in fetched and "cover.png" not in fetched
    with hub_of(files) as endpoint:
        again, ended = from_hub(endpoint, tmp_path, address)
    assert again == uris[:1] and "has not changed" in ended.stderr


def test_of_a_data_set_with_a_script_the_hubs_own_parquet_is_read(
    images: Path, tmp_path: Path
) -> None:
    parts = shards(images, tmp_path)
    converted = {
        f"default/{name.split('-')[0]}/0000.parquet": data for name, data in parts.items()
    }
    with hub_of({"pets.py": b"script"}, converted) as endpoint:
        uris, ended = from_hub(endpoint, tmp_path, "hf://datasets/owner/pets")
    assert ended.returncode == 0, ended.stderr
    assert manifests.load(uris[0]).images["test"] == 12


def test_several_configurations_are_named(images: Path, tmp_path: Path) -> None:
    parts = shards(images, tmp_path)
    files = {
        f"{config}/{name}": data for config in ("full", "small") for name, data in parts.items()
    }
    with hub_of(files) as endpoint:
        _, ended = from_hub(endpoint, tmp_path, "hf://datasets/owner/pets")
        uris, chosen = from_hub(endpoint, tmp_path, "hf://datasets/owner/pets/small")
    assert "refused: hf://datasets/owner/pets has the configurations full, small" in ended.stderr
    assert "such as hf://datasets/owner/pets/full" in ended.stderr
    assert sum(manifests.load(uris[0]).images.values()) == 24, chosen.stderr


def test_class_folders_on_the_hub_are_read(images: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(images)): path.read_bytes() for path in images.rglob("*.*")}
    with hub_of(files | {"README.md": b"# pets"}) as endpoint:
        uris, ended = from_hub(endpoint, tmp_path, "hf://datasets/owner/pets")
    assert ended.returncode == 0, ended.stderr
    assert manifests.load(uris[0]).images == {"train": 18, "eval": 6}


def test_what_the_hub_does_not_have_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with hub_of({"README.md": b"# pets"}) as endpoint:
        _, missing = from_hub(endpoint, tmp_path, "hf://datasets/owner/cats")
        _, empty = from_hub(endpoint, tmp_path, "hf://datasets/owner/pets")
    assert "refused: cannot fetch hf://datasets/owner/cats from the hub" in missing.stderr
    assert "set HF_TOKEN" in missing.stderr
    assert (
        "refused: hf://datasets/owner/pets is no folder with Parquet files, tars or images"
        in empty.stderr
    )
    assert "Traceback" not in missing.stderr + empty.stderr


@pytest.mark.parametrize("address", ["hf://owner/pets", "hf://datasets/pets", "hf://datasets/"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(DatasetError, match=r"expected hf://datasets/OWNER/NAME"):
        hub.find(address)


def found_on_hub(monkeypatch: pytest.MonkeyPatch, files: list[str], address: str) -> Any:
    """What `hub.find` makes of a repository with these files."""
    monkeypatch.setattr(hub, "_list_files", lambda *_: ("c" * 40, files))
    return hub.find(address)


def test_folders_of_splits_are_no_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["test/0.parquet", "train/0.parquet"]
    result = found_on_hub(monkeypatch, files, "hf://datasets/o/n")
    assert result.folder == "" and result.files == tuple(files)


def test_images_beside_archives_are_named_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*(f"a/{number}.jpg" for number in range(30)), "demo/sample.parquet"]
    with pytest.raises(DatasetError, match=r"archives \(demo/sample.parquet\) and 30 images in"):
        found_on_hub(monkeypatch, files, "hf://datasets/o/n")
    assert found_on_hub(monkeypatch, files, "hf://datasets/o/n/demo").folder == "demo"


@pytest.mark.parametrize("address", ["hf://datasets/o/n/../x", "hf://datasets/o/n/."])
def test_an_address_stays_inside_of_the_data_set(address: str) -> None:
    with pytest.raises(DatasetError, match="outside of the data set"):
        hub.find(address)


def test_a_hub_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    with hub_of({"../../evil.parquet": b"1"}) as endpoint:
        _, ended = from_hub(endpoint, tmp_path, "hf://datasets/owner/pets")
    assert "outside of the data set" in ended.stderr and "Traceback" not in ended.stderr
