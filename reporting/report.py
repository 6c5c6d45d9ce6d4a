"""Pages to look at: one of a training or an evaluation, one of a folder of results.

Each page is a single file that can be sent by mail and opened in ten years: styles, scripts, curves
and pictures are inside, nothing is fetched, and all but sorting and zooming works without scripts.
Every name on it may come from a stranger, so the templates escape all they print, and a policy in
the page lets the browser run our script, known by its hash, and no other.
"""

import hashlib
import math
import os
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.files import replacing
from common.text import printable
from config import IGNORE_INDEX, ClassTable
from utils import overlay

# Colours of the error map, RGB: four of Okabe and Ito's, which stay apart for colour-blind readers.
RIGHT, MISSED = (0, 158, 115), (213, 94, 0)
FALSE_ALARM, WRONG_CLASS = (86, 180, 233), (240, 228, 66)
IGNORED = (185, 185, 185)

# The longer side of an embedded view, in pixels, and how many lines a chart can carry.
VIEW_SIDE, MAX_LINES = 640, 8

# A word for an mIoU, from the first line that both it and the weakest class's IoU reach.
GRADES = ((0.85, 0.60, "Very good"), (0.70, 0.45, "Good"), (0.50, 0.25, "Fair"), (0.0, 0.0, "Poor"))


@dataclass(frozen=True)
class Sample:
    """One prediction to look at.

    Args:
        name: as it is shown, usually the file's.
        image: HWC uint8 RGB.
        truth, pred: (H, W) class indices; 255 in the truth is ignored.
        iou: mean IoU of this picture, in [0, 1], or NaN.
        rank: "best", "median" or "worst".
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray
    iou: float
    rank: str


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


def choose_samples(ious: list[float], count: int = 3) -> dict[str, list[int]]:
    """Pick pictures to show: up to `count` each of the best, median and worst, none twice.

    Pictures without a figure (NaN) are left out. The best come best first, the worst worst first.
    """
    order = sorted((i for i, iou in enumerate(ious) if iou == iou), key=lambda i: -ious[i])
    n = len(order)
    if n < 3:
        return {"best": order[:1], "median": [], "worst": order[1:]}
    k = min(count, n // 3)
    start = (n - k) // 2
    return {"best": order[:k], "median": order[start : start + k], "worst": order[: -k - 1 : -1]}


# --- The report of a training or an evaluation ----------------------------------------------------


def write_report(
    path: Path,
    *,
    title: str,
    classes: ClassTable,
    metrics: dict | None = None,
    history: list[dict] | None = None,
    samples: Iterable[Sample] = (),
    settings: Mapping[str, object] | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write report.html whole: how good the model is, and where it fails.

    What is not given leaves its part of the page out. Without `metrics`, the figures are those of
    the epoch with the best validation mIoU.

    Args:
        metrics: as evaluate.py writes them; `miou` and `iou` are enough, `confusion` (K, K), rows
            the truth, lets the page say what is mistaken for what.
        history: one row an epoch, as train.py keeps them.
        samples: consumed one at a time, so a generator need not hold all pictures at once.
        settings, facts: what the run was told, and what is known of it (versions, machine, time,
            throughput); shown as they are, in their order. The facts `seconds` and
            `images_per_second` also stand beside the verdict.

    Raises:
        OSError: the file cannot be written.
    """
    best = _best_row(history or [])
    if metrics is None and best is not None:
        metrics = {k.removeprefix("valid_"): v for k, v in best.items() if k.startswith("valid_")}
    metrics = metrics or {}
    _render(
        path,
        "report.html",
        title=title,
        verdict=_verdict(classes.names, metrics),
        tiles=_tiles(metrics, history or [], best, facts or {}),
        class_rows=_class_rows(classes, metrics),
        confusion=_confusion(metrics),
        names=classes.names,
        charts=_charts(history or [], classes.names, best),
        training=_training_sentence(history or [], best),
        samples=_sample_views(samples, classes),
        legend=_legend(classes),
        figures={k: v for k, v in metrics.items() if isinstance(v, int | float)},
        settings=settings or {},
        facts=facts or {},
    )


def _verdict(names: tuple[str, ...], metrics: dict) -> dict | None:
    """The page's first words: mIoU, a grade, and sentences on what they mean and where it fails."""
    miou = metrics.get("miou", math.nan)
    known = [(iou, i) for i, iou in enumerate(metrics.get("iou", ())) if iou == iou]
    if not known or miou != miou:
        return None
    weakest, index = min(known)
    grade = next(word for low, least, word in GRADES if miou >= low and weakest >= least)
    meaning = f"Predicted and true areas overlap by {miou:.0%}, averaged over {len(known)} classes."
    counts = np.array(metrics.get("confusion", ()), dtype=np.float64)
    if counts.any():
        common = int(counts.sum(1).argmax())
        lazy = counts[common].sum() / counts.sum() / len(known)
        meaning += f" Calling every pixel {names[common]} would reach {lazy:.0%}."
    failing = f"Weakest class: {names[index]}, IoU {weakest:.0%}."
    if counts.any():
        failing += "".join(_mistakes(names, counts, index))
    return {"miou": miou, "grade": grade, "meaning": meaning, "failing": failing}


def _mistakes(names: tuple[str, ...], counts: np.ndarray, index: int) -> Iterator[str]:
    """Which part of a class is missed and which part of what bears its name is not it."""
    name = names[index]
    truth, called = counts[index].sum(), counts[:, index].sum()
    missed, false = counts[index].copy(), counts[:, index].copy()
    missed[index] = false[index] = 0
    if missed.any():
        other = int(missed.argmax())
        yield f" {missed.sum() / truth:.0%} of it is missed, mostly called {names[other]}."
    if false.any():
        other = int(false.argmax())
        share = f"{false.sum() / called:.0%} of what is called {name}"
        yield f" {share} is something else, mostly {names[other]}."
    if truth and not called:
        yield f" Nothing was ever called {name}."


def _tiles(metrics: dict, history: list[dict], best: dict | None, facts: Mapping) -> list[tuple]:
    """The few figures that stand beside the verdict: (label, text)."""
    tiles = [
        (label, percent(metrics[key]))
        for key, label in (
            ("pixel_accuracy", "pixel accuracy"),
            ("mean_boundary_iou", "boundary IoU"),
            ("mean_dice", "mean Dice"),
            ("mean_over_images_iou", "mean image IoU"),
        )
        if key in metrics
    ]
    if best is not None:
        tiles.append(("best epoch", f"{best['epoch']} of {history[-1]['epoch']}"))
    if "images" in metrics:
        tiles.append(("pictures", f"{metrics['images']:,}"))
    seconds = sum(row.get("seconds", 0) for row in history) or facts.get("seconds")
    speed = facts.get("images_per_second")
    if isinstance(seconds, int | float) and seconds > 0:
        tiles.append(("time", duration(seconds)))
        if not history and "images" in metrics:
            speed = speed or metrics["images"] / seconds
    if isinstance(speed, int | float):
        tiles.append(("pictures a second", f"{speed:.3g}"))
    return tiles


def _class_rows(classes: ClassTable, metrics: dict) -> list[dict]:
    """One line a class: its figures by column, the colour of its overlay, whether it is weakest."""
    columns = ("iou", "boundary_iou", "dice", "precision", "recall")
    present = [column for column in columns if metrics.get(column)]
    if not present:
        return []
    known = [iou for iou in metrics.get("iou", ()) if iou == iou]
    rows = []
    for index, name in enumerate(classes.names):
        figures = {column: metrics[column][index] for column in present}
        weakest = len(known) > 1 and figures.get("iou") == min(known)
        color = classes.vis_colors[index]
        rows.append({"name": name, "color": color, "figures": figures, "weakest": weakest})
    return rows


def _confusion(metrics: dict) -> list[list[tuple[int, float]]]:
    """Each cell's pixels and its share of the true class, NaN for a class without truth."""
    counts = np.array(metrics.get("confusion", ()), dtype=np.int64)
    if not counts.size:
        return []
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)
    return [
        list(zip(*row, strict=True))
        for row in zip(counts.tolist(), shares.tolist(), strict=True)
    ]  # fmt: skip


# --- Curves ---------------------------------------------------------------------------------------

# A chart's canvas, width and height, and the margins around its plot: left, right, top, bottom.
CHART, MARGIN = (280, 170), (34, 8, 8, 20)


def _best_row(history: list[dict]) -> dict | None:
    """The first epoch with the highest validation mIoU."""
    known = [row for row in history if math.isfinite(row.get("valid_miou", math.nan))]
    return max(known, key=lambda row: row["valid_miou"], default=None)


def _training_sentence(history: list[dict], best: dict | None) -> str:
    """What the curves say about going on."""
    if best is None or len(history) < 5:
        return ""
    last = history[-1]
    since = last["epoch"] - best["epoch"]
    text = f"Validation mIoU was highest at epoch {best['epoch']} ({best['valid_miou']:.1%})"
    if since <= 0.1 * len(history):
        return f"{text}, close to the end: more epochs may help."
    return f"{text} and did not improve in the {since} epochs after it."


def _charts(history: list[dict], names: tuple[str, ...], best: dict | None) -> list[dict]:
    """Loss, mIoU, pixel accuracy of both splits, and each class's validation IoU."""
    if not history:
        return []
    epochs = [row["epoch"] for row in history]
    mark = best["epoch"] if best else None
    charts = []
    for figure, title in (("loss", "Loss"), ("miou", "Mean IoU"),
                          ("pixel_accuracy", "Pixel accuracy")):  # fmt: skip
        series = [
            (label, color, [row.get(f"{split}_{figure}") for row in history])
            for split, label, color in (("train", "training", 0), ("valid", "validation", 1))
        ]
        charts.append(_chart(title, epochs, series, mark, percents=figure != "loss"))
    final = history[-1].get("valid_iou") or []
    # Where there are more classes than lines that can be told apart, the weakest are drawn.
    shown = sorted(sorted(range(len(final)), key=lambda i: _or(final[i], -1))[:MAX_LINES])
    per_class = [
        (names[i], color, [row["valid_iou"][i] for row in history]) for color, i in enumerate(shown)
    ]
    weakest = f" of the {MAX_LINES} weakest classes" if len(final) > MAX_LINES else " of each class"
    charts.append(_chart(f"Validation IoU{weakest}", epochs, per_class, mark, percents=True))
    return [chart for chart in charts if chart]


def _chart(title: str, epochs: list[int], series: list[tuple[str, int, list]], mark: int | None,
           *, percents: bool) -> dict | None:  # fmt: skip
    """The geometry of one chart in pixels of `CHART`; a value that is not finite breaks its line.

    Args:
        series: (label, number of its colour, a value or None for each epoch).
        mark: the epoch of the vertical line.
    """
    finite = [v for _, _, values in series for v in values if math.isfinite(_or(v, math.nan))]
    if not finite:
        return None
    low, high = (min(finite), max(finite)) if percents else (0.0, max(finite))
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left, right, top, bottom = MARGIN
    width, height = CHART[0] - left - right, CHART[1] - top - bottom
    first, last = epochs[0], epochs[-1]

    def x(epoch: float) -> float:
        return round(left + width * ((epoch - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(top + height * (high - value) / (high - low), 1)

    def text(value: float) -> str:
        return percent(value) if percents else f"{value:.4g}"

    lines = []
    for label, color, values in series:
        parts: list[list[tuple]] = [[]]
        for epoch, value in zip(epochs, values, strict=True):
            if math.isfinite(_or(value, math.nan)):
                parts[-1].append((x(epoch), y(value), f"epoch {epoch}: {text(value)}"))
            elif parts[-1]:
                parts.append([])
        parts = [part for part in parts if part]
        last_value = next((v for v in reversed(values) if v is not None), math.nan)
        lines.append({"label": label, "color": color, "parts": parts, "last": text(last_value)})
    return {
        "title": title,
        "size": CHART,
        "frame": (left, top, left + width, top + height),
        "lines": lines,
        "dots": len(epochs) <= 60,
        "x_ticks": [
            (x(t), f"{t:g}") for t in _ticks(first, last, whole=True) if first <= t <= last
        ],
        "y_ticks": [(y(t), f"{100 * t:g}%" if percents else f"{t:g}") for t in ticks],
        "mark": x(mark) if mark is not None else None,
    }


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About four round numbers that span [low, high]."""
    if high <= low:
        high = low + (1 if whole else max(abs(low), 1e-3) * 0.1)
    rough = (high - low) / 4
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(m * base for m in (1, 2, 5, 10) if m * base >= rough * 0.999)
    step = max(step, 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


# --- Samples --------------------------------------------------------------------------------------


def _sample_views(samples: Iterable[Sample], classes: ClassTable) -> dict[str, list[dict]]:
    """The samples by rank, worst first, their four views encoded."""
    ranked: dict[str, list[dict]] = {"worst": [], "median": [], "best": []}
    for sample in samples:
        ranked[sample.rank].append(_views(sample, classes))
    return {rank: views for rank, views in ranked.items() if views}


def _views(sample: Sample, classes: ClassTable) -> dict:
    """Photograph, truth, prediction and error map of one sample, as data URIs."""
    height, width = sample.image.shape[:2]
    # Masks are drawn at twice the views' size and then averaged, so that small spots do not vanish.
    scale = min(1.0, 2 * VIEW_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)
    truth, pred = (
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        for mask in (sample.truth, sample.pred)
    )
    pictures = {
        "Photograph": image,
        "Truth": overlay(image, truth, classes),
        "Prediction": overlay(image, pred, classes),
        "Errors": error_map(image, truth, pred),
    }
    half = min(1.0, VIEW_SIDE / max(size))
    view = max(1, round(size[0] * half)), max(1, round(size[1] * half))
    return {
        "name": sample.name,
        "iou": sample.iou,
        "size": view,
        "pictures": {
            label: _jpeg_uri(cv2.resize(picture, view, interpolation=cv2.INTER_AREA))
            for label, picture in pictures.items()
        },
    }


def error_map(image: np.ndarray, truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Show where and in which way a prediction is wrong, on the dimmed photograph.

    Class 0 counts as the ground: what is there but called class 0 is missed, what is class 0 but
    called another is a false alarm. Where class 0 is right, the photograph alone is seen.

    Args:
        image: HWC uint8 RGB.
        truth, pred: (H, W) class indices; 255 in the truth is ignored.

    Returns:
        HWC uint8 RGB.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    view = cv2.cvtColor(cv2.addWeighted(grey, 0.4, grey, 0, 0), cv2.COLOR_GRAY2RGB)
    tint = np.full_like(view, RIGHT)
    wrong = truth != pred
    right = ~wrong & (truth != 0)
    view[right] = cv2.addWeighted(view, 0.5, tint, 0.6, 0)[right]
    view[wrong & (truth != 0) & (pred != 0)] = WRONG_CLASS
    view[wrong & (pred == 0)] = MISSED
    view[wrong & (truth == 0)] = FALSE_ALARM
    view[truth == IGNORE_INDEX] = IGNORED
    return view


def _legend(classes: ClassTable) -> dict[str, list[tuple]]:
    """(colour, words) for the overlays and for the error map."""
    ground = classes.names[0]
    shown = zip(classes.vis_colors, classes.names, strict=True)
    return {
        "Classes": [(color, name) for color, name in shown if any(color)],
        "Errors": [
            (RIGHT, "right"),
            (MISSED, f"missed: called {ground}"),
            (FALSE_ALARM, f"false alarm: is {ground}"),
            (WRONG_CLASS, "wrong class"),
            (IGNORED, "ignored"),
        ],
    }


def _jpeg_uri(image: np.ndarray) -> Markup:
    """A picture as a data URI, fine enough that small coloured spots do not turn grey."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, 92]
    flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
    return _data_uri(encoded.tobytes())


def _data_uri(jpeg: bytes) -> Markup:
    return Markup("data:image/jpeg;base64," + b64encode(jpeg).decode())


# --- The gallery of a folder of results -----------------------------------------------------------


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        cards = [_card(row, spool, Path(out_dir), path.parent) for row in rows]
        cards.sort(key=lambda card: -_or(card["severity"], -1))  # stable: equals keep their order
        severities = [card["severity"] for card in cards if card["severity"] == card["severity"]]
        _render(
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
    largest = sorted(range(len(row.shares)), key=lambda i: -row.shares[i])[:MAX_LINES]
    return {
        "name": row.name,
        "severity": row.severity,
        "shares": [(i, row.shares[i]) for i in sorted(largest) if row.shares[i] > 0],
        "href": None if row.overlay_href is None else _href(out_dir / row.overlay_href, page_dir),
        "thumbnail": (start, len(row.thumbnail)),
    }


def _with_thumbnails(cards: list[dict], spool) -> Iterator[dict]:
    """The cards again, each with its thumbnail for as long as it is being written."""
    for card in cards:
        start, length = card["thumbnail"]
        spool.seek(start)
        yield card | {"thumbnail": _data_uri(spool.read(length))}


def _href(target: Path, page_dir: Path) -> str:
    """A relative link, every byte that means something in an address percent-encoded."""
    relative = Path(os.path.relpath(target, page_dir)).as_posix()
    return quote(os.fsencode(relative))


def _histogram(severities: list[float], bins: int = 20) -> list[dict]:
    """How many pictures there are in each step from 0 to the highest severity."""
    if len(severities) < 2 or max(severities) <= 0:
        return []
    counts, edges = np.histogram(severities, bins=bins, range=(0, max(severities)))
    return [
        {"count": int(n), "height": float(n / counts.max()), "low": float(a), "high": float(b)}
        for n, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
    ]


# --- From templates to files ----------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text; a dash where there is none."""
    return f"{value:.{digits}%}" if math.isfinite(_or(value, math.nan)) else "–"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plain(value: object) -> str:
    """A setting or a fact as text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "–"
    return str(value)


def _or(value: float | None, other: float) -> float:
    """The value, or the other where there is none or it is NaN."""
    return other if value is None or value != value else value


def _printed(value: object) -> object:
    """What an expression of a template prints: control characters of names become visible."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_hash(script: str) -> Markup:
    """The name under which a page's policy allows exactly this script (CSP level 2)."""
    return Markup("sha256-" + b64encode(hashlib.sha256(script.encode()).digest()).decode())


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "plain": _plain, "script_hash": _script_hash}
    return environment


def _render(path: Path, template: str, **context) -> None:
    """Write a page piece by piece, so that it is never in memory as a whole."""
    stream = _environment().get_template(template).stream(**context)
    stream.enable_buffering(100)
    with replacing(path) as temporary:
        stream.dump(str(temporary), encoding="utf-8")
