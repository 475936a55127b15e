"""Self-contained HTML pages from the package's Jinja templates.

A page has no scripts and loads nothing from elsewhere. Class names, file names and messages are
untrusted text: every value is escaped, and the page's Content-Security-Policy blocks the rest.
"""

from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, **values: Any) -> bytes:
    """The page that a template makes of `values`.

    `template`: path below the package, as in `sweep/report.html.j2`; so are the paths that
    templates extend and import.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "thousands": thousands}
    return environment.get_template(template).render(**values).encode()


def _read_template(name: str) -> str:
    return files("effnet_ray").joinpath(name).read_text("utf-8")


def percent(fraction: float, digits: int = 2) -> str:
    """0.1234 as "12.34 %", with a no-break space."""
    return f"{100 * fraction:.{digits}f}\u00a0%"


def thousands(number: float) -> str:
    """1234.5 as "1,234"."""
    return f"{number:,.0f}"
