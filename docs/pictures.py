"""Makes most of docs/pictures/: the terminal of a run and its evaluation, and the report.

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
from sklearn.datasets import load_sample_images

from effnet_ray.cli import terminal
from effnet_ray.cli.main import load_job, main

PICTURES = Path(__file__).resolve().parent / "pictures"
HOME = Path("/tmp/demo")
"""Paths in the pictures begin with it."""
COMMANDS = {
    "finetune": "finetune --local --name digits --epochs 6 --image-size 48",
    "evaluate": "evaluate --local --model digits@best --unknown-source pieces --report r.html",
}
"""Name of the picture and its command."""
PIECE, PIECES = 100, 60
"""Side of the unknown pictures, which are cut from photographs, px; and their number."""
WIDTH = 123
"""Columns of the terminal."""
WINDOW, PLOT_WINDOW = (1000, 1150), (440, 330)
"""Width and height of the browser's window for a page, and for one plot, px."""
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


def cut_pieces(folder: Path) -> None:
    """Write pieces of scikit-learn's two photographs, which show no digits."""
    folder.mkdir()
    for number, photograph in enumerate(load_sample_images().images):
        rows, columns = (side // PIECE for side in photograph.shape[:2])
        for place in range(min(PIECES // 2, rows * columns)):
            top, left = PIECE * (place // columns), PIECE * (place % columns)
            piece = Image.fromarray(photograph[top : top + PIECE, left : left + PIECE])
            piece.save(folder / f"{number}-{place:02d}.png")


def write_plot(report: Path, description: str, png: Path) -> None:
    """Write one plot of a report, on white."""
    found = re.search(rf'<svg[^>]*aria-label="{description}".*?</svg>', report.read_text(), re.S)
    assert found
    page = report.with_name("plot.html")
    page.write_text(f"<body style='margin:8px;background:white'>{found[0]}</body>")
    screenshot(page, png, PLOT_WINDOW)


def screenshot(page: Path, png: Path, window: tuple[int, int] = WINDOW) -> None:
    """Write the first screen of a page, in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chrome"
    width, height = window
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
        cut_pieces(HOME / "pieces")
        record_terminal()
        screenshot(HOME / "r.html", PICTURES / "report.png")
        write_plot(HOME / "r.html", "histogram of unknown scores", PICTURES / "unknown.png")
    finally:
        shutil.rmtree(HOME)


if __name__ == "__main__":
    make_pictures()
