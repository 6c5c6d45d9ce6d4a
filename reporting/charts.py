"""The curves of a training as geometry: what the template draws as SVG, without a library."""

import math
from itertools import groupby

from reporting.pages import MAX_COLORS, is_number, percent

# A chart's canvas, width and height, and the corners of its plot: left, top, right, bottom.
CHART, FRAME = (280, 170), (34, 8, 272, 150)
FIGURES = {"Loss": "loss", "Mean IoU": "miou", "Pixel accuracy": "pixel_accuracy"}
# A square-ish plot of points, likewise.
SCATTER, SCATTER_FRAME = (300, 230), (44, 8, 282, 194)
MAX_POINTS = 1000  # that a chart draws; more cannot be told apart
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


def agreement_charts(symptom: dict) -> list[dict]:
    """Predicted against true severity, and Bland and Altman's plot of their differences.

    Args:
        symptom: one entry of `trust.agreement.severity_agreement`.
    """
    step = -(-len(symptom["files"]) // MAX_POINTS)
    files, true, predicted = (symptom[key][::step] for key in ("files", "true", "predicted"))
    texts = [
        f"{name}: {percent(y, 2)} instead of {percent(x, 2)}"
        for name, x, y in zip(files, true, predicted, strict=True)
    ]
    high = max(*true, *predicted, 0.01)
    points = [(*point, "picture") for point in zip(true, predicted, texts, strict=True)]
    diagonal = [((0, 0), (high, high), "exact")]
    scatter = scatter_chart("Predicted against true", points, diagonal, ("true", "predicted"))
    means = [(x + y) / 2 for x, y in zip(true, predicted, strict=True)]
    differences = [y - x for x, y in zip(true, predicted, strict=True)]
    ends = (0, max(*means, 0.01))
    levels = {"exact": 0.0, "bias": symptom["bias"]}
    levels |= {"limit low": symptom["limits_low"], "limit high": symptom["limits_high"]}
    lines = [((ends[0], y), (ends[1], y), kind) for kind, y in levels.items() if is_number(y)]
    points = [(*point, "picture") for point in zip(means, differences, texts, strict=True)]
    words = "mean of both", "predicted - true"
    return [scatter, scatter_chart("Differences", points, lines, words)]


def reliability_chart(figures: dict) -> dict:
    """How often pixels are right over how sure the model was of them, before and after.

    Args:
        figures: of `trust.calibration.reliability_figures`.
    """
    points = [
        (step["said"], step["seen"], f"{kind}: {percent(step['share'])} of the pixels", kind)
        for kind in ("before", "after")
        for step in figures[kind]["steps"]
    ]
    words = "probability that the model says", "share that is right"
    return scatter_chart("Probability against truth", points, [((0, 0), (1, 1), "exact")], words)


def scatter_chart(
    title: str,
    points: list[tuple[float, float, str, str]],
    lines: list[tuple[tuple[float, float], tuple[float, float], str]],
    words: tuple[str, str],
) -> dict:
    """The geometry of points (x, y, words, kind) and of lines (from, to, kind), all of them shares.

    Args:
        words: what the axes are.
    """
    ends = [end for first, last, _ in lines for end in (first, last)]
    xs, ys = ([*(p[axis] for p in points), *(e[axis] for e in ends)] for axis in (0, 1))
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    left, top, right, bottom = SCATTER_FRAME

    def x(value: float) -> float:
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return round(left + (right - left) * share, 1)

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(bottom - (bottom - top) * share, 1)

    return {
        "title": title,
        "size": SCATTER,
        "frame": SCATTER_FRAME,
        "words": words,
        "points": [(x(a), y(b), text, kind) for a, b, text, kind in points],
        "lines": [(x(a), y(b), x(c), y(d), kind) for (a, b), (c, d), kind in lines],
        "x_ticks": [(x(tick), f"{100 * tick:g}%") for tick in x_ticks],
        "y_ticks": [(y(tick), f"{100 * tick:g}%") for tick in y_ticks],
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
