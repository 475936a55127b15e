"""Makes docs/pictures/serve.png: the server's page after a photograph was dropped on it.

    effnet-ray serve --model NAME@best &
    python docs/server_picture.py --photo PHOTO.jpg

Needs a running server, Chromium, and `pip install playwright`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro
from pictures import COLOURS, PICTURES
from PIL import Image
from playwright.sync_api import sync_playwright

WINDOW = {"width": 760, "height": 640}
"""px"""


@dataclass(frozen=True)
class Options:
    """What to show."""

    photo: Path
    """The photograph."""
    url: str = "http://127.0.0.1:8000/"
    """The server."""
    out: Path = PICTURES / "serve.png"


def main(options: Options) -> None:
    """Choose the photograph on the page, wait for the answer, and write what is seen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport=WINDOW)  # type: ignore[arg-type]
        page.goto(options.url)
        page.set_input_files("#file", options.photo)
        page.wait_for_selector("#result:not([hidden])")
        page.screenshot(path=options.out)
        browser.close()
    with Image.open(options.out) as image:
        image.convert("RGB").quantize(COLOURS).save(options.out, optimize=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
