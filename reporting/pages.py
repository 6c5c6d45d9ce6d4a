"""What all pages share: one environment, one escaping, figures and pictures as they are shown.

Each page is a single file that can be sent by mail and opened in ten years: styles, scripts, curves
and pictures are inside, nothing is fetched, and all but sorting and zooming works without scripts.
Every name on it may come from a stranger, so the templates escape all they print, and a policy in
the page lets the browser run our script, known by its hash, and no other.
"""

import hashlib
import math
from base64 import b64encode
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.files import replacing
from common.text import printable

# How many colours a page has to tell lines or classes apart.
MAX_COLORS = 8


def render(path: Path, template: str, **context) -> None:
    """Write a page piece by piece, so that it is never in memory as a whole.

    Raises:
        OSError: the file cannot be written.
    """
    stream = environment().get_template(template).stream(**context)
    stream.enable_buffering(100)
    with replacing(path) as temporary:
        stream.dump(str(temporary), encoding="utf-8")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """What compiles the templates."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    strict = {"autoescape": True, "undefined": StrictUndefined, "finalize": _printed}
    made = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **strict)
    made.filters |= {"percent": percent, "plain": _plain, "script_hash": _script_hash}
    return made


def is_number(value: float | None) -> bool:
    """Whether there is a value, neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text; a dash where there is none."""
    return f"{value:.{digits}%}" if is_number(value) else "–"


def jpeg_uri(jpeg: bytes) -> Markup:
    """The bytes of a JPEG file as an address that holds them."""
    return Markup("data:image/jpeg;base64," + b64encode(jpeg).decode())


def _plain(value: object) -> str:
    """A setting or a fact as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, float):
        return f"{value:.6g}" if is_number(value) else "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "–"
    return str(value)


def _printed(value: object) -> object:
    """What an expression of a template prints: control characters of names become visible."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_hash(script: str) -> Markup:
    """The name under which a page's policy allows exactly this script (CSP level 2)."""
    return Markup("sha256-" + b64encode(hashlib.sha256(script.encode()).digest()).decode())
