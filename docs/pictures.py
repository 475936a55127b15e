"""Makes docs/pictures/: the terminal of a run and its evaluation, and the evaluation report.

    python docs/pictures.py

Runs the commands below through the real jobs, in a home folder of its own, in a few minutes on
two cores. Needs Chromium for the report.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from effnet_ray.cli import terminal
from effnet_ray.cli.main import load_job, main

PICTURES = Path(__file__).resolve().parent / "pictures"
HOME = Path("/tmp/demo")
"""Paths in the pictures begin with it."""
COMMANDS = {
    "finetune": "finetune --local --name digits --epochs 6 --image-size 48",
    "evaluate": "evaluate --local --model digits@best --report report.html",
}
"""Name of the picture and its command."""
WIDTH = 123
"""Columns of the terminal."""
WINDOW = (1000, 1150)
"""Width and height of the browser's window, px."""
COLOURS = 64
"""Colours of the PNG's palette: fewer make a smaller file."""
SVG = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)
"""rich's template without web fonts, which browsers do not load for images."""


def record_terminal() -> None:
    """Run the commands and write what each of them prints."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, highlight=False)
    terminal.Console = lambda **_: console  # type: ignore[misc,assignment]
    terminal.PLAIN_EVERY_S = sys.maxsize  # a terminal has a progress bar instead of these lines
    for name, command in COMMANDS.items():
        console.print(f"[bold]$ effnet-ray {command}[/bold]", soft_wrap=True)
        job, *flags = shlex.split(command)
        if main(load_job(job), flags):
            sys.exit(f"{command} failed")
        console.print()  # rich cuts the descenders of the last line
        print(console.export_text(clear=False))
        svg = str(PICTURES / f"{name}.svg")
        console.save_svg(svg, title="effnet-ray", code_format=SVG, unique_id=name)


def screenshot(page: Path, png: Path) -> None:
    """Write the first screen of a page, in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chrome"
    width, height = WINDOW
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--window-size={width},{height}", f"--screenshot={png}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(png) as image:
        image.convert("RGB").quantize(COLOURS).save(png, optimize=True)


def make_pictures() -> None:
    """Make all pictures."""
    PICTURES.mkdir(exist_ok=True)
    HOME.mkdir()
    try:
        os.environ["HOME"] = str(HOME)
        os.chdir(HOME)
        record_terminal()
        screenshot(HOME / "report.html", PICTURES / "report.png")
    finally:
        shutil.rmtree(HOME)


if __name__ == "__main__":
    make_pictures()
