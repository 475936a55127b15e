"""Shared by tests: LONG, NASTY, Page, browser, measured."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

NASTY = "<script>document.title='owned'</script>"
LONG = "long" * 20


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag, and whatever it would load."""
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in LOADING]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        """Note what is read."""
        self.text += data


LOADING = ("src", "href", "xlink:href", "srcset", "data", "action")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: .ci/run installs it")
MEASURE = """<script>
const f = document.getElementById("f");
f.onload = () => {
  const d = f.contentDocument, e = d.documentElement;
  const seen = [...d.images].filter(i => i.naturalWidth > 0).length;
  const plots = d.querySelectorAll("svg").length;
  document.title = [e.scrollWidth, d.title, seen, d.images.length, plots].join("|");
};</script>"""


def measured(page: bytes, width: int, folder: Path) -> list[str]:
    """What a real browser makes of the page, so wide: see MEASURE.

    In a frame, since Chromium's own window is never below 500 px. Its origin is the frame's
    page's, so that scripts in it, if any ran, could be seen.
    """
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" width="{width}" height="800" style="border:0" '
        f'srcdoc="{html.escape(page.decode())}"></iframe>{MEASURE}'
    )
    done = subprocess.run(
        [
            CHROMIUM or "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/profile",
            "--virtual-time-budget=10000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    return html.unescape(title[1]).split("|")
