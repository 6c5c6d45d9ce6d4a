"""The gallery of a folder of results: every picture with its numbers, the most severe first."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import quote

import numpy as np

from config import ClassTable
from reporting.pages import MAX_COLORS, jpeg_uri, render


@dataclass(frozen=True)
class GalleryRow:
    """One picture of a gallery.

    Args:
        name: as it is shown.
        severity: in [0, 1], what the gallery is sorted by; NaN comes last.
        shares: each class's share of the picture, in [0, 1].
        thumbnail: an encoded JPEG.
        overlay_href: path of the full overlay below `out_dir`, or None.
    """

    name: str
    severity: float
    shares: list[float]
    thumbnail: bytes
    overlay_href: str | None


def write_gallery(
    path: Path,
    *,
    title: str,
    classes: ClassTable,
    rows: Iterable[GalleryRow],
    out_dir: Path,
    note: str = "",
) -> None:
    """Write summary.html whole: every picture with its numbers, the most severe first.

    Sorting needs all rows before the first can be written, but not their pictures: thumbnails wait
    in an unnamed file on disk, so memory holds a line of numbers a picture, however many there are.

    Args:
        rows: consumed one at a time.
        out_dir: the folder that `overlay_href` is below; links are relative to the page's folder.
        note: a sentence on what severity means here.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        cards = [_card(row, spool, out_dir, path.parent) for row in rows]
        severities = [card["severity"] for card in cards if not math.isnan(card["severity"])]
        cards.sort(key=lambda card: 1 if math.isnan(card["severity"]) else -card["severity"])
        render(
            path,
            "gallery.html",
            title=title,
            note=note,
            classes=list(zip(classes.names, classes.vis_colors, strict=True)),
            cards=_with_thumbnails(cards, spool),
            count=len(cards),
            middle=median(severities) if severities else math.nan,
            highest=max(severities, default=math.nan),
            histogram=_histogram(severities),
        )


def _card(row: GalleryRow, spool, out_dir: Path, page_dir: Path) -> dict:
    """What a picture's card shows, its thumbnail put aside on the disk."""
    start = spool.tell()
    spool.write(row.thumbnail)
    largest = sorted(range(len(row.shares)), key=lambda i: -row.shares[i])[:MAX_COLORS]
    href = None
    if row.overlay_href is not None:
        # Relative, every byte that means something in an address percent-encoded.
        relative = Path(os.path.relpath(out_dir / row.overlay_href, page_dir))
        href = quote(os.fsencode(relative.as_posix()))
    return {
        "name": row.name,
        "severity": row.severity,
        "shares": [(i, row.shares[i]) for i in sorted(largest) if row.shares[i] > 0],
        "href": href,
        "thumbnail": (start, len(row.thumbnail)),
    }


def _with_thumbnails(cards: list[dict], spool) -> Iterator[dict]:
    """The cards again, each with its thumbnail for as long as it is being written."""
    for card in cards:
        start, length = card["thumbnail"]
        spool.seek(start)
        yield card | {"thumbnail": jpeg_uri(spool.read(length))}


def _histogram(severities: list[float], bins: int = 20) -> list[dict]:
    """How many pictures there are in each step from 0 to the highest severity."""
    if len(severities) < 2 or max(severities) <= 0:
        return []
    counts, edges = np.histogram(severities, bins=bins, range=(0, max(severities)))
    return [
        {"count": int(n), "height": float(n / counts.max()), "low": float(a), "high": float(b)}
        for n, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
    ]
