"""Every job that reads or changes a store, by its flags: on disk, moto and rclone."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import pyarrow.parquet as pq
import pytest
from support.faults import Proxy, proxy
from support.releases import CLASSES, released
from support.servers import free_port, fresh_bucket, s3_environment
from support.store_worker import files

from effnet_ray import storage
from effnet_ray.cli.main import main
from effnet_ray.cli.models import models_job
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.release.load import LoadedRelease
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format.record import read_record
from effnet_ray.storage import checksummed_json

pytestmark = pytest.mark.heavy

PLACES = [pytest.param("disk", marks=pytest.mark.long), "moto",
          pytest.param("rclone", marks=pytest.mark.long)]  # fmt: skip
PATIENCE = 120.0
"""Seconds in which a server begins to serve."""


@dataclass(frozen=True)
class Place:
    """A folder or a bucket, and which server has it."""

    uri: str
    server: str

    @property
    def store(self) -> str:
        """Where its releases are."""
        return f"{self.uri}/store"


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each kind of storage in turn; on rclone this is the single writer, and says so."""
    if request.param == "disk":
        yield Place(str(tmp_path), "")
        return
    server = request.getfixturevalue(request.param)
    with s3_environment(server):
        if request.param == "rclone":
            os.environ["EFFNET_SINGLE_WRITER"] = "1"
        yield Place(fresh_bucket(), server)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    """A B0 for images of 32 pixels."""
    return released(tmp_path_factory.mktemp("released"), size=32)


def publish(release: LoadedRelease, place: Place) -> None:
    """`birds@v1`, the release; v2 and v3, which hold no network and are worse."""
    record = read_record(release.uri)
    content = {
        name: checksummed_json.read_file(release.uri, name, record) for name in record["files"]
    }
    store = ModelStore(place.store, single_writer=True)
    assert store.publish("birds", content, record).version == 1
    for run, top1 in (("second", 0.5), ("third", 0.625)):
        store.publish("birds", files(run, top1), {"run": run})


def test_every_verb_of_models(
    place: Place, release: LoadedRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(release, place)

    def said(*flags: str) -> dict[str, Any]:
        assert main(models_job, [*flags, "--store", place.store]) == 0, capsys.readouterr().err
        output: dict[str, Any] = json.loads(capsys.readouterr().out)
        return output

    (model,) = said("list")["models"]
    assert (len(model["versions"]), model["aliases"]) == (3, {"best": 1})
    assert said("show", "birds@best")["release_uri"] == f"{place.store}/birds/v0001"
    assert said("promote", "birds@v3", "champion")["version"] == 3
    output = said("verify")
    assert output["verified"] == [f"birds@v{n}" for n in (1, 2, 3)]
    assert output["aliases"] == ["birds@best", "birds@champion"]
    exported = said("export", "birds@best", "--out", f"{place.uri}/exported")
    assert exported["release"] == "birds@v1"
    made = {"model.onnx": exported["bytes"]}.items()
    assert made <= storage.sizes(f"{place.uri}/exported").items()
    assert said("delete", "birds@v1", "--force")["best"] == 3
    assert said("show", "birds")["aliases"] == {"best": 3, "champion": 3}
    storage.write_bytes(f"{place.store}/birds/staging/0123456789abcdef/x", b"left")
    (removed,) = said("gc", "--older-than", "0")["removed"]
    assert removed.endswith("0123456789abcdef")
    assert said("verify", "birds")["verified"] == ["birds@v2", "birds@v3"]


# --- with Ray


class Jobs:
    """A process with a Ray of its own, whose S3 server may be changed while it runs."""

    def __init__(self, through: Proxy, heard: IO[bytes]) -> None:
        self.through, self.heard = through, heard
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "support/verbs_worker.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=heard, text=True,
        )  # fmt: skip

    def begin(self, job: str, *flags: str) -> None:
        """Let it run a job."""
        assert self.process.stdin
        print(json.dumps([job, flags]), file=self.process.stdin, flush=True)

    def end(self) -> dict[str, Any]:
        """What the job said."""
        assert self.process.stdout
        code, printed = json.loads(self.process.stdout.readline())
        assert code == 0, self.said()
        output: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return output

    def said(self) -> str:
        """To people, so far."""
        return Path(self.heard.name).read_text(errors="replace")


@pytest.fixture(scope="module")
def jobs(moto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    heard = tmp_path_factory.mktemp("jobs") / "heard"
    with proxy(moto) as through, heard.open("wb") as file:
        with s3_environment(through.endpoint):
            made = Jobs(through, file)
        yield made
        made.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def data(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/`, six photographs of each of the release's classes, and `data/`, them packed."""
    folder = tmp_path_factory.mktemp("data")
    for number, path in enumerate(sorted(photographs.rglob("*.*"))):
        target = folder / "photos" / CLASSES[number % len(CLASSES)] / f"{number}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pack(str(folder / "photos"), str(folder / "data"), Packing(eval_fraction=0.25))
    return folder


@pytest.mark.ray
@pytest.mark.long
def test_a_release_is_judged_and_predicts_and_serves(
    place: Place, jobs: Jobs, release: LoadedRelease, data: Path
) -> None:
    publish(release, place)
    for path in (path for path in data.rglob("*") if path.is_file()):
        storage.write_bytes(f"{place.uri}/{path.relative_to(data)}", path.read_bytes())
    jobs.through.upstream = urlparse(place.server).netloc
    model = ["--model", "birds@best", "--store", place.store]

    report = f"{place.uri}/report.html"
    where = ["--data", f"{place.uri}/data", "--report", report, "--workers", "1"]
    jobs.begin("evaluate", *model, *where)
    output = jobs.end()
    assert (output["model"], output["images"], output["quarantined"]) == ("birds@v1", 8, 0)
    assert b"</html>" in storage.read_bytes(report)

    out = f"{place.uri}/out"
    jobs.begin("predict", *model, "--source", f"{place.uri}/photos", "--out", out, "--workers=1")
    assert jobs.end()["rows"] == 24
    files, folder = storage.arrow_filesystem(f"{out}/part-00000.parquet")
    rows = pq.read_table(folder, filesystem=files).to_pylist()
    photographs = {str(path.relative_to(data / "photos")) for path in data.glob("photos/*/*")}
    assert {row["path"] for row in rows} == photographs

    port = free_port()
    jobs.begin("serve", *model, "--port", str(port))
    answer = ask(jobs, port, (data / "photos" / rows[0]["path"]).read_bytes())
    assert (answer["model"], answer["label"]) == ("birds@v1", rows[0]["label"])
    jobs.process.send_signal(signal.SIGINT)
    assert jobs.end()["release_uri"] == f"{place.store}/birds/v0001"


def ask(jobs: Jobs, port: int, image: bytes) -> dict[str, Any]:
    """What is said of the image, once it is served."""
    until = time.monotonic() + PATIENCE
    while f"127.0.0.1:{port}" not in jobs.said():
        assert time.monotonic() < until and jobs.process.poll() is None, jobs.said()
        time.sleep(0.1)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", body=image)
    output: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return output
