"""Matplotlib figures as SVG in the page's own text colour, for light and dark mode."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK = "#010203"
"""Placeholder colour of text and lines in a plot; `to_svg` replaces it with `currentColor`."""
BLUE, ORANGE = "#3b8fd4", "#e8832a"
"""Distinguishable with colour blindness, on white and on black."""
WIDTH, HEIGHT = 4.4, 3.0
"""Inches: a phone of 360 px shows a plot in its natural size."""
INK_SETTINGS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: screen readers read it, and the file is smaller
    "svg.hashsalt": "effnet_ray",  # the same plot gives the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def plot_style(ink: str = INK) -> Iterator[None]:
    """Matplotlib's settings for all plots, with text and axes in the colour `ink`."""
    settings: Any = STYLE | dict.fromkeys(INK_SETTINGS, ink)
    with rc_context(settings):
        yield


def new_figure(height: float = HEIGHT, width: float = WIDTH, **options: Any) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained", **options)


def to_svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element; `description` is its text for screen readers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
