"""The curves of a training as geometry: what the template draws as SVG, without a library."""

import math
from itertools import groupby

from reporting.pages import MAX_COLORS, is_number, percent

# A chart's canvas, width and height, and the corners of its plot: left, top, right, bottom.
CHART, FRAME = (280, 170), (34, 8, 272, 150)
FIGURES = {"Loss": "loss", "Mean IoU": "miou", "Pixel accuracy": "pixel_accuracy"}
Series = list[tuple[str, list[float | None]]]  # label, a value or None for each epoch


def training_charts(history: list[dict], names: tuple[str, ...], mark: int | None) -> list[dict]:
    """Loss, mIoU, pixel accuracy of both splits, and each class's validation IoU.

    Args:
        history: one row an epoch, as train.py keeps them.
        mark: the epoch of the vertical lines.
    """
    if not history:
        return []
    epochs, charts = [row["epoch"] for row in history], []
    for title, figure in FIGURES.items():
        splits = ("training", f"train_{figure}"), ("validation", f"valid_{figure}")
        series = [(label, [row.get(key) for row in history]) for label, key in splits]
        charts.append(line_chart(title, epochs, series, mark, percents=figure != "loss"))
    final = history[-1].get("valid_iou") or []
    # Where there are more classes than lines that can be told apart, the weakest are drawn.
    order = sorted(range(len(final)), key=lambda i: final[i] if is_number(final[i]) else -1)
    shown = sorted(order[:MAX_COLORS])
    series = [(names[i], [row["valid_iou"][i] for row in history]) for i in shown]
    which = f"of the {MAX_COLORS} weakest classes" if len(final) > MAX_COLORS else "of each class"
    charts.append(line_chart(f"Validation IoU {which}", epochs, series, mark, percents=True))
    return [chart for chart in charts if chart]


def line_chart(
    title: str, epochs: list[int], series: Series, mark: int | None, *, percents: bool
) -> dict | None:
    """The geometry of one chart in pixels; a value that is not finite breaks its line."""
    finite = [value for _, values in series for value in values if is_number(value)]
    if not finite:
        return None
    low, high = (min(finite), max(finite)) if percents else (0.0, max(finite))
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = epochs[0], epochs[-1]
    left, top, right, bottom = FRAME

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(left + (right - left) * share, 1)

    def y(value: float) -> float:
        return round(top + (bottom - top) * (high - value) / (high - low), 1)

    def text(value: float) -> str:
        return percent(value) if percents else f"{value:.4g}"

    lines = []
    for color, (label, values) in enumerate(series):
        runs = groupby(zip(epochs, values, strict=True), key=lambda point: is_number(point[1]))
        parts = [
            [(x(epoch), y(value), f"epoch {epoch}: {text(value)}") for epoch, value in run]
            for drawn, run in runs
            if drawn
        ]
        latest = next((value for value in reversed(values) if value is not None), math.nan)
        lines.append({"label": label, "color": color, "parts": parts, "last": text(latest)})
    whole = [tick for tick in _ticks(first, last, whole=True) if first <= tick <= last]
    return {
        "title": title,
        "size": CHART,
        "frame": FRAME,
        "lines": lines,
        "dots": len(epochs) <= 60,
        "x_ticks": [(x(tick), f"{tick:g}") for tick in whole],
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
