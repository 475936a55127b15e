"""The server's page classifies a picture in a real browser, and loads nothing from elsewhere."""

import base64
import hashlib
import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.pages import CHROMIUM, NASTY, Page, browser
from support.releases import released

from effnet_ray.errors import ImageError
from effnet_ray.inference import http_docs
from effnet_ray.inference.http_api import ServedRelease
from effnet_ray.release.load import LoadedRelease

DROP = """
const bytes = await (await fetch("/picture")).arrayBuffer();
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "picture"));
const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
"""
"""Drops the server's /picture on the page, as a person would."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return released(tmp_path_factory.mktemp("released"))


class Handler(BaseHTTPRequestHandler):
    """Serves the page with a script that drops a picture, and answers as the server would."""

    served: ServedRelease
    picture: bytes
    answer: dict[str, Any] | None = None

    def do_GET(self) -> None:
        """The page with the server's policy, or the picture."""
        if self.path == "/picture":
            return self._send(self.picture, "application/octet-stream")
        page = http_docs.page("birds@v1", 4).decode()
        page = page.replace("</body>", f'<script type="module">{DROP}</script></body>')
        drop = base64.b64encode(hashlib.sha256(DROP.encode()).digest()).decode()
        policy = http_docs.POLICY.replace("script-src ", f"script-src 'sha256-{drop}' ")
        self._send(page.encode(), "text/html; charset=utf-8", policy=policy)

    def do_POST(self) -> None:
        """The answer for an image."""
        assert self.path == "/?map=1"
        data = self.rfile.read(int(self.headers["content-length"]))
        (actual,) = self.served.predict([data], [True])
        if self.answer:
            actual = self.answer
        if isinstance(actual, ImageError):
            return self._send(b'{"error": "the body is not a readable image"}', "x", 415)
        self._send(json.dumps(actual).encode(), "application/json")

    def _send(self, data: bytes, kind: str, status: int = 200, policy: str = "") -> None:
        self.send_response(status)
        self.send_header("content-security-policy", policy)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing."""


@pytest.fixture
def handler(release: LoadedRelease, photographs: Path) -> Iterator[type[Handler]]:
    class Own(Handler):
        served = ServedRelease(release.uri, 3)
        picture = next(iter(sorted(photographs.rglob("*.jpg")))).read_bytes()

    yield Own


def shown(handler: type[Handler], folder: Path) -> str:
    """The page after the picture was dropped, as the browser has it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        done = subprocess.run(
            [CHROMIUM or "chromium", "--headless", "--no-sandbox", "--disable-gpu",
             f"--user-data-dir={folder}/profile", "--virtual-time-budget=8000", "--dump-dom",
             f"http://127.0.0.1:{server.server_port}/"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@browser
def test_a_dropped_picture_is_classified(handler: type[Handler], tmp_path: Path) -> None:
    dom = shown(handler, tmp_path)
    (answer,) = handler.served.predict([handler.picture], [True])
    assert isinstance(answer, dict)
    items = re.findall(r"<li><span>(.*?)</span><span>(.*?)</span>", dom)
    assert items == [
        (each["label"], f"{100 * each['probability']:.1f} %") for each in answer["labels"]
    ]
    assert 'src="blob:' in dom and 'src="data:image/jpeg;base64,' in dom
    assert '<section id="result" aria-live' in dom  # no longer hidden
    assert '<p id="unknown"></p>' in dom


@browser
def test_what_is_unknown_or_no_picture_is_said_and_names_are_text(
    handler: type[Handler], tmp_path: Path
) -> None:
    answer = {"label": NASTY, "labels": [{"label": NASTY, "probability": 1.0}],
              "map": "data:image/jpeg;base64,", "unknown": 1.5, "is_unknown": True}  # fmt: skip
    handler.answer = answer
    dom = shown(handler, tmp_path / "a")
    assert html.escape(NASTY, quote=False) in dom and "<title>birds@v1</title>" in dom
    assert "score 1.50" in dom
    handler.answer, handler.picture = None, b"no picture"
    assert ">the body is not a readable image</p>" in shown(handler, tmp_path / "b")


def test_the_page_loads_nothing_and_only_its_script_runs() -> None:
    page = http_docs.page(NASTY, 1000)
    parsed = Page(page)
    assert [link for link in parsed.links if link] == []
    assert NASTY.encode() not in page and b"1,000 classes" in page
    assert "default-src 'none'" in http_docs.POLICY and "'sha256-" in http_docs.POLICY
    assert "unsafe-inline'; img" in http_docs.POLICY.replace("script-src", "")  # styles only
    assert not re.search(r"script-src[^;]*unsafe", http_docs.POLICY)


def test_the_description_is_that_of_the_answers(release: LoadedRelease, photographs: Path) -> None:
    described = http_docs.openapi()
    post = described["paths"]["/"]["post"]
    schema = post["responses"]["200"]["content"]["application/json"]["schema"]
    data = next(iter(sorted(photographs.rglob("*.jpg")))).read_bytes()
    served = ServedRelease(release.uri, 2)
    plain, mapped = (served.predict([data], [with_map])[0] for with_map in (False, True))
    assert isinstance(plain, dict) and isinstance(mapped, dict)
    assert set(schema["required"]) <= set(plain) <= set(schema["properties"])
    assert set(mapped) == {*plain, "map"}
    get = described["paths"]["/"]["get"]["responses"]["200"]["content"]["application/json"]
    assert set(served.description) | {"replica"} == set(get["schema"]["properties"])
    json.dumps(described)


def test_only_those_who_ask_get_a_map(release: LoadedRelease, photographs: Path) -> None:
    data = next(iter(sorted(photographs.rglob("*.jpg")))).read_bytes()
    answers = ServedRelease(release.uri, 2).predict([data, b"", data], [False, True, True])
    assert isinstance(answers[1], ImageError)
    assert ["map" in each for each in (answers[0], answers[2])] == [False, True]  # type: ignore[operator]
