"""No secret of the environment, of a file or of an argument is printed or recorded."""

import base64
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.autoscaled import submit
from support.heads import Head, processes, secured_head, status
from support.servers import free_port, fresh_bucket, mlflow_server, s3_environment

from effnet_ray import storage
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import JOBS, load_job, main, run
from effnet_ray.cli.models import models_job
from effnet_ray.errors import EffnetRayError, InputError, StorageError, quote as quoted
from effnet_ray.packing.sample import pack_sample
from effnet_ray.redaction import has_credentials, is_secret, redact
from effnet_ray.storage import s3

ROOT = Path(__file__).parents[1]
C = "C4nary"
"""Part of every secret of these tests."""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"AKIA{C.upper()}KEYID00001",
    "AWS_SECRET_ACCESS_KEY": f"{C}/AwsSecret+0002",
    "AWS_SESSION_TOKEN": f"{C}AwsSession//0003==",
    "HF_TOKEN": f"hf_{C}Hub000000000000000000000004",
    "HUGGING_FACE_HUB_TOKEN": f"hf_{C}Hub000000000000000000000005",
    "SMTP_PASS": f"{C}-mail-0006",
    "MLFLOW_TRACKING_PASSWORD": f"{C}-password-0007",
    "MLFLOW_TRACKING_TOKEN": f"{C}-token-0008",
    "HTTP_PROXY": f"http://proxyuser:{C}-proxy-0009@127.0.0.1:9",
    "RAY_AUTH_TOKEN": f"{C}0010".ljust(64, "0"),
    "DB_PASSWORD": f"{C}-db-0011",
    "STRIPE_API_KEY": f"sk_live_{C}0012",
    "GITHUB_TOKEN": f"ghp_{C}000000000000000000000000000013",
    "CLIENT_SECRET": f"{C}-client-0014",
    "SERVICE_CREDENTIALS": json.dumps({"type": "service", "id": f"{C}0015"}),
    "DEPLOY_PRIVATE_KEY": f"-----BEGIN PRIVATE KEY-----\n{C}0016\n-----END PRIVATE KEY-----",
}
"""Variable → secret."""

IN_TEXT = {
    "tracker URL": f"http://me:{C}@127.0.0.1:5000",
    "S3 URI with keys": f"s3://AKIA0000:{C}/with/slashes@bucket/data",
    "S3 URI with a user": f"s3://{C}@bucket/data",
    "presigned URL": f"https://b.s3.amazonaws.com/k?X-Amz-Expires=60&X-Amz-Signature={C}",
    "presigned S3 URI": f"s3://bucket/k?x-amz-security-token={C}&a=b",
    "old presigned URL": f"https://b.s3.amazonaws.com/k?AWSAccessKeyId={C}&Signature={C}",
    "Google's presigned URL": f"https://storage.googleapis.com/b/k?X-Goog-Signature={C}",
    "URL with a token": f"https://host/x?a=1&access_token={C}",
    "hub address with a token": f"hf://user:{C}@datasets/owner/name",
    "Hugging Face token": f"hf_{C}" + "0" * 30,
    "GitHub token": f"ghp_{C}" + "0" * 30,
    "AWS key id": "AKIAC4NARY0000000000",
    "file named by a token": f"/data/hf_{C}{'0' * 30}.json",
    "private key": f"-----BEGIN RSA PRIVATE KEY-----\n{C}\n",
}
"""Kind of secret → a text that contains one, and is known for it by its form."""


def holds_canary(text: str) -> list[str]:
    """The secrets of these tests in a text, as they are, encoded for URLs, or in Base64."""
    encoded = [base64.b64encode(value.encode()).decode() for value in ENVIRONMENT.values()]
    return [each for each in (C, C.upper(), *encoded) if each in text]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment full of secrets; returns the home folder, which has files of them."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return home_with_credentials(tmp_path / "home")


def home_with_credentials(home: Path) -> Path:
    """A home folder with the usual files of credentials."""
    files = {
        ".aws/credentials": f"[default]\naws_access_key_id = AK{C}\naws_secret_access_key = {C}\n",
        ".netrc": f"machine huggingface.co login me password {C}\n",
        ".cache/huggingface/token": f"hf_{C}{'0' * 30}",
        ".git-credentials": f"https://me:{C}@github.com\n",
    }
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    return home


# --- redaction


@pytest.mark.parametrize("kind", IN_TEXT)
def test_a_secret_is_known_by_its_form(kind: str) -> None:
    text = f"cannot read {IN_TEXT[kind]}: access denied"
    assert not holds_canary(redact(text)) and redact(text).startswith("cannot read ")
    assert not holds_canary(str(StorageError(text)))
    assert not holds_canary(quoted(OSError(text)))


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_secret_of_the_environment_is_known_by_its_variable(name: str, secrets: Path) -> None:
    value = ENVIRONMENT[name]
    text = f"the server refuses {value} of {name}"
    assert not holds_canary(redact(text)) and redact(text).endswith(f" of {name}")


@pytest.mark.parametrize(
    "header", [f"Authorization: Bearer {C}0000", f"{{'authorization': 'Basic {C}0000'}}"]
)
def test_a_header_that_a_server_repeats_is_known(header: str) -> None:
    assert not holds_canary(redact(f"401 for {header}, sorry"))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/runs/pets/checkpoints/0001",
        "s3://bucket/store/pets@v1",
        "http://127.0.0.1:5000/#/models/pets@best",
        "http://[::1]:9000/a@b",
        "hf://datasets/owner/name@main/folder",
        "/home/someone/data//a@b.jpg",
        "the tokenizer is basic, and the author is me: no secret",
        "pets@v1: sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "a photograph.jpg?width=20&sign=left",
    ],
)
def test_other_text_is_left_as_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "someone")
    monkeypatch.setenv("USERNAME", "someone")
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/home/someone")
    assert redact(text) == text and not has_credentials(text)


@pytest.mark.parametrize(
    ("variable", "value", "argument"),
    [
        ("S3_KEY", "datasets/imagenet", "s3://bucket/datasets/imagenet"),
        ("CACHE_KEY", "imagenet-v1", "imagenet-v1"),
        ("KAGGLE_USERNAME", "johnsmith", "/home/johnsmith/photos"),
        ("DATABASE_URL", "postgres://me:postgres@db/x", "/mnt/postgres/photos"),
        ("AWS_SECRET_ACCESS_KEY", "minioadmin", "s3://minioadmin/photos"),
        ("X", "", "authorization-baseline"),
        ("X", "", "/data/authorization/documents"),
    ],
)
def test_ordinary_arguments_are_not_taken_for_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, argument: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert not is_secret(argument) and not is_secret(f"--data={argument}")


def test_text_of_any_length_is_redacted_at_once() -> None:
    """A pattern that looks ahead without bound takes minutes here: the test would time out."""
    assert len(str(InputError("://a:" * 1_000_000))) < 3000
    assert "://a:" in redact("://a:" * 20_000)


def test_a_secret_that_is_cut_off_is_not_printed_in_part() -> None:
    error = OSError("x" * 270 + f" http://user:{C}-{'0' * 80}@host failed")
    assert not holds_canary(quoted(error))


def test_warnings_of_libraries_lose_their_secrets(
    secrets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], []

    def warn(_: object) -> dict[str, object]:
        logging.getLogger("urllib3").warning("retrying %s", IN_TEXT["presigned URL"])
        logging.getLogger("urllib3").warning("%d images", "three")  # logging itself reports it
        try:
            raise OSError(IN_TEXT["tracker URL"])
        except OSError:
            logging.getLogger("urllib3").exception("failed")
        return {}

    try:
        assert main(warn, []) == 0
    finally:
        root.handlers[:] = before
    printed = capsys.readouterr().err
    assert "retrying https://b.s3" in printed and "OSError: http://127" in printed
    assert not holds_canary(printed)


def test_the_traceback_of_a_fault_of_our_own_has_no_secrets() -> None:
    code = "from effnet_ray.cli.main import main\nmain(lambda _: {}, [])\n"
    code += f"raise ValueError({IN_TEXT['tracker URL']!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "ValueError: http://127" in done.stderr
    assert not holds_canary(done.stderr.splitlines()[-1])


# --- arguments and URIs


@pytest.mark.parametrize("kind", IN_TEXT)
@pytest.mark.parametrize("name", JOBS)
def test_an_argument_with_a_secret_is_refused_without_repeating_it(
    name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = IN_TEXT[kind]
    for words in ([f"--data={text}"], ["--data", text], [text], [f"--{text}"]):
        assert main(load_job(name), words) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and not holds_canary(printed.err)
        assert len(printed.err.splitlines()) == 1 and "set it in the environment" in printed.err
        assert ("the value of --data" in printed.err) == (words[0].startswith("--data"))


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_an_argument_that_repeats_the_environment_is_refused(
    name: str, secrets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(finetune_job, [f"--name={ENVIRONMENT[name]}"]) == 2
    assert not holds_canary(capsys.readouterr().err)


def test_a_secret_in_place_of_a_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["effnet-ray", IN_TEXT["tracker URL"], "--help"])
    assert run() == 2
    assert not holds_canary("".join(capsys.readouterr()))


URIS = [text for text in IN_TEXT.values() if "://" in text]


@pytest.mark.parametrize("uri", URIS)
def test_storage_refuses_a_uri_with_a_secret(uri: str) -> None:
    for operation in (storage.read_bytes, storage.exists, storage.absolute, storage.sizes):
        with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID") as refused:
            operation(uri)
        assert not holds_canary(str(refused.value))


@pytest.mark.parametrize("variable", ["EFFNET_DATA", "EFFNET_RUNS", "EFFNET_STORE"])
@pytest.mark.parametrize("uri", URIS)
def test_a_location_in_the_environment_may_hold_no_secret(
    variable: str, uri: str, packed: Path, refused: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EFFNET_DATA", str(packed))
    monkeypatch.setenv("EFFNET_RUNS", f"{tmp_path}/runs")
    monkeypatch.setenv("EFFNET_STORE", f"{tmp_path}/store")
    monkeypatch.setenv(variable, uri)
    assert not holds_canary(refused("--weights", "none"))


# --- servers that fail


class Echo(BaseHTTPRequestHandler):
    """Refuses every request, and repeats its headers and its path in the answer."""

    status = 403

    def answer(self) -> None:
        """Answer any request."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        repeated = f"{self.path} {self.headers}"
        text = f"<Code>AccessDenied</Code><Message>{quote(repeated, ' :')}</Message>"
        body = f"<Error>{text}</Error>".encode()
        if "mlflow" in self.path:
            error = {"error_code": "PERMISSION_DENIED", "message": repeated}
            body = json.dumps(error).encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    """Address of such a server."""
    server = HTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_that_repeats_what_it_was_sent_is_not_quoted_with_secrets(
    echo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with s3_environment(f"http://{echo}"):
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        jobs = {
            "pack": ["--source", "s3://bucket/images", "--out", f"{tmp_path}/out"],
            "finetune": ["--data", "s3://bucket/data", "--weights", "none"],
            "tune": ["--data", "s3://bucket/data", "--weights", "none"],
            "evaluate": ["--model", "s3://bucket/store/a/v0001", "--data", "s3://bucket/data"],
            "predict": ["--model", "s3://bucket/store/a/v0001", "--source", "s3://bucket/images",
                        "--out", f"{tmp_path}/out"],
            "serve": ["--model", "a@best", "--store", "s3://bucket/store"],
            "models": ["list", "--store", "s3://bucket/store"],
            "check": ["--data", "s3://bucket/data", "--runs", "s3://bucket/runs",
                      "--store", "s3://bucket/store"],
            "data": ["s3://bucket/data"],
        }  # fmt: skip
        assert set(jobs) == set(JOBS)
        for name, words in jobs.items():
            assert main(load_job(name), words) != 0, name
            printed = "".join(capsys.readouterr())
            assert printed and not holds_canary(printed), name


def test_an_endpoint_with_a_password_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with s3_environment(f"http://me:{C}-0000@127.0.0.1:9"):
        assert main(models_job, ["list", "--store", "s3://bucket/store"]) == 2
        printed = capsys.readouterr().err
    assert "AWS_ENDPOINT_URL" in printed and not holds_canary(printed)


@pytest.mark.parametrize("user", ["", f"{C}:{C}-pass-0000@"])
def test_a_tracker_that_repeats_what_it_was_sent_is_not_quoted_with_secrets(
    user: str, echo: str, packed: Path, secrets: Path, refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}{echo}")
    flags = ["--data", str(packed), "--weights", "none", "--tracker", "mlflow"]
    sentence = refused(*flags)
    assert f"http://{echo}" in sentence and "PERMISSION_DENIED" in sentence
    assert not holds_canary(sentence)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}127.0.0.1:9")
    assert not holds_canary(refused(*flags))


def test_errors_keep_their_type_and_their_text_without_secrets() -> None:
    assert str(InputError("found this, expected that")) == "found this, expected that"
    assert str(EffnetRayError()) == ""


# --- on a cluster


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an MLflow server."""
    return tmp_path_factory.mktemp("mlflow")


def test_a_trials_actor_has_no_credentials_in_its_runtime_environment(secrets: Path) -> None:
    from ray.tune import Trainable
    from ray.tune.execution.class_cache import _ActorClassCache

    from effnet_ray.sweep.trial import keep_credentials_private

    keep_credentials_private()
    options = _ActorClassCache().get(Trainable)._default_options
    assert options["runtime_env"]["env_vars"] and not holds_canary(str(options))


@pytest.fixture(scope="module")
def head(moto: str, tracked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of our cluster file, whose environment and home are full of secrets."""
    home, port = home_with_credentials(tmp_path_factory.mktemp("home")), free_port()
    # Ray takes its token from this variable first; here it is in a file.
    more = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_AUTH_TOKEN"}
    more["MLFLOW_TRACKING_URI"] = f"http://{C}-user:{C}-password@127.0.0.1:{port}"
    more |= {"NO_PROXY": "*", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    with mlflow_server(tracked, port), s3_environment(moto):
        os.environ.update(more)
        with secured_head(home, cpus=2) as running:
            yield running


class Watched(threading.Thread):
    """Collects the arguments of the head's processes while a job runs."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__()
        self._env, self._ended = env, threading.Event()
        self.arguments = set[str]()

    def run(self) -> None:
        """Look five times a second."""
        while not self._ended.wait(0.2):
            for process in processes(self._env):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    self.arguments.update(process.cmdline())

    def __enter__(self) -> "Watched":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


LISTS = (
    "actors",
    "tasks",
    "jobs",
    "workers",
    "placement_groups",
    "objects",
    "nodes",
    "runtime_envs",
)
"""What Ray's state API lists."""


FLUSHED_S = 10
"""Seconds in which Ray's processes report their last tasks; they do so every second."""


def ray_state(head: Head) -> dict[str, str]:
    """What Ray's dashboard tells of everything that ran, runtime environments among it."""
    url = f"http://127.0.0.1:{head.dashboard}/api"
    time.sleep(FLUSHED_S)
    result = {"submissions": status("get", f"{url}/jobs/", head.token)}
    for name in LISTS:
        result[name] = status("get", f"{url}/v0/{name}?detail=1&limit=10000", head.token)
    result["serve"] = status("get", f"{url}/serve/applications/", head.token)
    assert {code for code, _ in result.values()} == {200}, result
    return {name: text for name, (_, text) in result.items()}


def session_logs(arguments: set[str]) -> dict[str, str]:
    """Every file of Ray's session logs."""
    folders = {Path(a.partition("=")[2]) for a in arguments if a.startswith("--logs-dir=")}
    assert folders
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {str(file): file.read_text(errors="replace") for file in files}


def stored(bucket: str) -> dict[str, str]:
    """Every object of a bucket with its metadata as S3 tells it; Parquet also decoded."""
    result: dict[str, str] = {}
    for path, size in storage.sizes(bucket).items():
        uri = storage.join(bucket, path)
        data = storage.read_bytes(uri) if size else b""
        name, key = bucket.removeprefix("s3://"), path
        result[path] = data.decode(errors="replace")
        result[f"{path} (head)"] = str(s3.client().call_s3("head_object", Bucket=name, Key=key))
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            fields = [f.name for f in table.schema if pa.types.is_string(f.type)]
            result[f"{path} (table)"] = f"{table.schema} {table.select(fields).to_pylist()}"
    return result


def leaks(head: Head, places: Mapping[str, str]) -> list[str]:
    """Names of the texts that hold a secret."""
    return [n for n, text in places.items() if holds_canary(text) or head.token in text]


def run_jobs(head: Head, bucket: str, out: Path) -> dict[str, str]:
    """Run jobs in the cluster; what they print, write, report to Ray, or have as arguments."""
    script = str(ROOT / "tests/support/all_jobs.py")
    with Watched(head.env) as watched:
        done = submit(head.env, sys.executable, script, bucket, str(out), timeout_s=1000)
    assert done.returncode == 0 and "all jobs ran" in done.stdout, done.stdout + done.stderr
    logs = session_logs(watched.arguments)
    assert any("all_jobs.py" in text for text in logs.values())
    files = {str(f): f.read_text(errors="replace") for f in out.rglob("*") if f.is_file()}
    places = {"stdout": done.stdout, "stderr": done.stderr, "argv": str(watched.arguments)}
    return {**places, **ray_state(head), **logs, **stored(bucket), **files}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_job_on_a_cluster_leaves_a_secret_anywhere(
    head: Head, tracked: Path, tmp_path: Path
) -> None:
    """Every job, a sweep, a served image, a tracker, and mistakes."""
    bucket, out = fresh_bucket(), tmp_path / "out"
    pack_sample(f"{bucket}/digits")
    for name in ("0/1.png", "1/2.png", "0/3.png", "1/4.png"):
        storage.write_bytes(f"{bucket}/pictures/{name}", picture())
    out.mkdir()
    places = run_jobs(head, bucket, out)
    written = [file for file in tracked.rglob("*") if file.is_file()]
    places |= {str(file): file.read_text(errors="replace") for file in written}
    assert any("mlflow.db" in path for path in places)
    assert {"data.html", "report.html", "store/canary/v0001/release.json"} <= places.keys()
    assert "canary@best" in places["stdout"] + places["stderr"]
    assert "is refused" in places["tasks"]
    assert leaks(head, places) == []


def picture() -> bytes:
    """A PNG with its own grey."""
    file = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(file, "png")
    return file.getvalue()


# --- the checks above


def test_the_search_finds_secrets_in_every_spelling() -> None:
    for value in ENVIRONMENT.values():
        assert holds_canary(value) and holds_canary(quote(value, safe=""))
        assert holds_canary(base64.b64encode(value.encode()).decode())
