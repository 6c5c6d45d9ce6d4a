"""The gallery of a folder of results: every picture with its numbers, the most severe first."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from config import ClassTable
from reporting.pages import MAX_COLORS, jpeg_uri, render

PAGE_SIZE = 500  # pictures: with their thumbnails, some 5 to 10 MB that a browser opens at once


@dataclass(frozen=True)
class Doubt:
    """How far the result of a picture can be trusted, in [0, 1]; None where nothing says it.

    Args:
        confidence: the overlap to expect between the mask and the truth.
        unlike_training: the share of the training pictures that are more like the others.
        severity_low, severity_high: the interval of the severity.
    """

    confidence: float | None = None
    unlike_training: float | None = None
    severity_low: float | None = None
    severity_high: float | None = None


@dataclass(frozen=True)
class GalleryRow:
    """One picture of a gallery.

    Args:
        name: as it is shown.
        severity: in [0, 1], what the gallery is sorted by; NaN comes last.
        shares: each class's share of the picture, in [0, 1].
        thumbnail: an encoded JPEG.
        overlay_href: path of the full overlay below the page's folder, or None.
        doubt: how far to trust it.
    """

    name: str
    severity: float
    shares: list[float]
    thumbnail: bytes
    overlay_href: str | None
    doubt: Doubt = Doubt()


def write_gallery(
    path: Path,
    *,
    title: str,
    classes: ClassTable,
    rows: Iterable[GalleryRow],
    note: str = "",
    page_size: int = PAGE_SIZE,
) -> None:
    """Write summary.html whole: every picture with its numbers, the most severe first.

    Beyond `page_size` pictures it becomes the first of several pages, summary_2.html and so on.
    Sorting needs all rows before the first can be written, but not their content: cards wait in an
    unnamed file on disk, and memory holds three numbers a picture.

    Args:
        rows: consumed one at a time.
        note: a sentence on what severity means here.

    Raises:
        OSError: a file cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        places = [_put_aside(row, spool, path.parent) for row in rows]
        severities = [severity for severity, *_ in places if not math.isnan(severity)]
        places.sort(key=lambda place: 1 if math.isnan(place[0]) else -place[0])
        pages = [
            {
                "name": path.name if not first else f"{path.stem}_{first // page_size + 1}.html",
                "low": places[min(first + page_size, len(places)) - 1][0] if places else math.nan,
                "high": places[first][0] if places else math.nan,
            }
            for first in range(0, len(places) or 1, page_size)
        ]
        shown = {
            "title": title,
            "note": note,
            "classes": list(zip(classes.names, classes.vis_colors, strict=True)),
            "pages": pages,
            "count": len(places),
            "graded": bool(severities),
            "middle": median(severities) if severities else math.nan,
            "highest": max(severities, default=math.nan),
            "histogram": _histogram(severities),
        }
        numbers = range(len(pages))[::-1]  # the first page last: all that it links to is there
        for number in tqdm(numbers, "Writing the gallery", unit="page", delay=2):
            page = path.with_name(pages[number]["name"])
            cards = _taken_back(places[number * page_size : (number + 1) * page_size], spool)
            render(page, "gallery.html", number=number, cards=cards, **shown)
    _remove_further_pages(path, len(pages))


def _put_aside(row: GalleryRow, spool: BinaryIO, folder: Path) -> tuple[float, int, int]:
    """Write what a card shows to the disk: its severity, where it stands, and its length."""
    largest = sorted(range(len(row.shares)), key=lambda i: -row.shares[i])[:MAX_COLORS]
    href = None
    if row.overlay_href is not None:
        # Relative, every byte that means something in an address percent-encoded.
        relative = Path(os.path.relpath(folder / row.overlay_href, folder))
        href = quote(os.fsencode(relative.as_posix()))
    card = {
        "name": row.name,
        "severity": row.severity,
        "shares": [(i, row.shares[i]) for i in sorted(largest) if row.shares[i] > 0],
        "href": href,
        "doubt": asdict(row.doubt),
    }
    start, text = spool.tell(), json.dumps(card).encode()
    spool.write(text + b"\n" + row.thumbnail)
    return row.severity, start, len(text) + 1 + len(row.thumbnail)


def _taken_back(places: list[tuple[float, int, int]], spool: BinaryIO) -> Iterator[dict]:
    """The cards, each with its thumbnail for as long as it is being written."""
    for _, start, length in places:
        spool.seek(start)
        text, thumbnail = spool.read(length).split(b"\n", 1)
        yield json.loads(text) | {"thumbnail": jpeg_uri(thumbnail)}


def _remove_further_pages(path: Path, count: int) -> None:
    """Remove the pages that an earlier, longer gallery had beyond these."""
    for other in path.parent.glob(f"{path.stem}_[0-9]*.html"):
        number = other.stem.removeprefix(f"{path.stem}_")
        if number.isdecimal() and int(number) > count:
            other.unlink()


def _histogram(severities: list[float], bins: int = 20) -> list[dict]:
    """How many pictures there are in each step from 0 to the highest severity."""
    if len(severities) < 2 or max(severities) <= 0:
        return []
    counts, edges = np.histogram(severities, bins=bins, range=(0, max(severities)))
    return [
        {"count": int(n), "height": float(n / counts.max()), "low": float(a), "high": float(b)}
        for n, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
    ]
