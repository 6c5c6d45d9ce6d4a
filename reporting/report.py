"""The page of one training or evaluation: how good the model is, and where it fails."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.text import counted
from config import ClassTable
from reporting.charts import MAX_POINTS, agreement_charts, reliability_chart, training_charts
from reporting.pages import percent, render
from reporting.samples import Sample, legend, sample_views

# The figures beside the verdict and their words.
TILES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_boundary_iou": "boundary IoU",
    "mean_dice": "mean Dice",
    "mean_over_images_iou": "mean image IoU",
}
# An error of severity, in [0, 1], from which on no model is called good.
MISLEADING = 0.1
# The best word that the concordance of severity with the truth allows (a rule of thumb), where
# errors are worth a word: rmse from EXACT up, of at least ENOUGH pictures.
CONCORDANCES = ((0.95, "Very good"), (0.85, "Good"), (0.70, "Fair"), (-1.0, "Poor"))
EXACT, ENOUGH = 0.01, 10
# A word for an mIoU, from the first line that both it and the weakest class's IoU reach.
GRADES = ((0.85, 0.60, "Very good"), (0.70, 0.45, "Good"), (0.50, 0.25, "Fair"), (0.0, 0.0, "Poor"))


def write_report(
    path: Path,
    *,
    title: str,
    classes: ClassTable,
    metrics: dict | None = None,
    severity: Sequence[dict] = (),
    severity_note: str = "",
    reliability: dict | None = None,
    doubtful: Sequence[tuple[str, float, float]] = (),
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
        severity: of `trust.agreement.severity_agreement`, an entry a symptom; the last one's
            concordance bounds the grade.
        severity_note: a sentence on symptoms that have no entry.
        reliability: of `trust.calibration.reliability_figures`.
        doubtful: (name, confidence, mean IoU) of the pictures to look at first.
        history: one row an epoch, as train.py keeps them.
        samples: consumed one at a time, so a generator need not hold all pictures at once.
        settings, facts: what the run was told, and what is known of it (versions, machine, time,
            throughput); shown as they are, in their order. The fact `seconds` also stands
            beside the verdict.

    Raises:
        OSError: the file cannot be written.
    """
    history, facts = history or [], facts or {}
    # The first epoch with the highest validation mIoU.
    known = [row for row in history if math.isfinite(row.get("valid_miou", math.nan))]
    best = max(known, key=lambda row: row["valid_miou"], default=None)
    anew = metrics is not None  # at each mask's own size, and not as the epochs were
    if not anew and best is not None:
        metrics = {k.removeprefix("valid_"): v for k, v in best.items() if k.startswith("valid_")}
    metrics = metrics or {}
    render(
        path,
        "report.html",
        title=title,
        verdict=_verdict(classes.names, metrics, severity),
        severity=[_severity_part(symptom) for symptom in severity],
        severity_note=severity_note,
        reliability=_reliability_part(reliability) if reliability else None,
        doubtful=doubtful,
        tiles=_tiles(metrics, history, best, facts),
        class_rows=_class_rows(classes, metrics),
        confusion=_confusion(metrics),
        names=classes.names,
        anew=anew,
        charts=training_charts(history, classes.names, best and best["epoch"]),
        training=_training_sentence(history, best),
        samples=sample_views(samples, classes),
        legend=legend(classes),
        figures={k: v for k, v in metrics.items() if isinstance(v, int | float)},
        settings=settings or {},
        facts=facts,
    )


def _verdict(names: tuple[str, ...], metrics: dict, agreement: Sequence[dict]) -> dict | None:
    """The page's first words: mIoU, a grade, and sentences on what they mean and where it fails."""
    miou = metrics.get("miou", math.nan)
    known = [(iou, i) for i, iou in enumerate(metrics.get("iou", ())) if iou == iou]
    if not known or miou != miou:
        return None
    weakest, index = min(known)
    grade = next(word for low, least, word in GRADES if miou >= low and weakest >= least)
    averaged = counted(len(known), "class|classes")
    meaning = f"Predicted and true areas overlap by {miou:.0%}, averaged over {averaged}."
    counts = np.array(metrics.get("confusion", ()), dtype=np.float64)
    failing = f"Weakest class: {names[index]}, IoU {weakest:.0%}."
    if counts.any():
        largest = int(counts.sum(1).argmax())
        lazy = counts[largest].sum() / counts.sum() / len(known)
        meaning += f" Calling every pixel {names[largest]} would reach {lazy:.0%}."
        failing += "".join(_mistakes(names, counts, index))
    severity, misleads = _severity(metrics)
    grade = min(grade, "Fair", key=_rank) if misleads else grade
    for symptom in agreement[-1:]:
        told = _concordance_sentence(symptom)
        severity = (severity or f" Severity is that of {symptom['class']}.") + told
        grade = min(grade, _allowed(symptom), key=_rank)
    return {"miou": miou, "grade": grade, "meaning": meaning, "failing": failing + severity}


def _rank(grade: str) -> int:
    """How good a grade is, the worst first."""
    return -[word for *_, word in GRADES].index(grade)


def _severity(metrics: dict) -> tuple[str, bool]:
    """What the worst pictures say of severity, and whether a figure of it could mislead."""
    if not metrics.get("severity_worst"):
        return "", False
    name, true, predicted = metrics["severity_worst"]
    text = (
        f" Severity is off by {percent(metrics['severity_error'])} on average, at worst on {name}: "
        f"{percent(predicted)} instead of {percent(true)}."
    )
    missed = metrics["severity_missed"]
    if missed:
        pictures = counted(metrics["images"], "picture|pictures")
        text += f" On {len(missed)} of {pictures} most of it is missed."
    return text, bool(missed) or abs(predicted - true) > MISLEADING


def _allowed(symptom: dict) -> str:
    """The best grade that a symptom's agreement with the truth allows.

    It is at most two words better than what the concordance's interval does not rule out.
    """
    words = [word for _, word in CONCORDANCES]
    concordance, lower = symptom["concordance"], symptom["concordance_low"]
    if math.isnan(concordance) or symptom["rmse"] < EXACT or len(symptom["files"]) < ENOUGH:
        return words[0]
    likely, worst = (
        next(index for index, (low, _) in enumerate(CONCORDANCES) if value >= low)
        for value in (concordance, concordance if math.isnan(lower) else lower)
    )
    return words[max(likely, worst - 2)]


def _concordance_sentence(symptom: dict) -> str:
    """The severity's concordance with its interval, where there is one."""
    if math.isnan(symptom["concordance"]):
        return ""
    text = f" Its concordance with the truth is {symptom['concordance']:.2f}"
    low, high = symptom["concordance_low"], symptom["concordance_high"]
    return text + (f" (95 %: {low:.2f} to {high:.2f})." if low == low else ".")


def _severity_part(symptom: dict) -> dict:
    """A symptom's two charts, each with a sentence on what to read from it."""
    scatter, differences = agreement_charts(symptom)
    count = len(symptom["files"])
    words = f"Each point is a picture ({count:,}"
    words += f", {len(scatter['points']):,} drawn)" if count > MAX_POINTS else ")"
    words += f"; above the line the severity of {symptom['class']} is predicted too high."
    words += _concordance_sentence(symptom)
    if not math.isnan(symptom["accuracy"]):
        words += (
            f" It is the product of how close the points lie to one line "
            f"({symptom['precision']:.2f}) and how close that line is to this one "
            f"({symptom['accuracy']:.2f})."
        )
    bias, low, high = (100 * symptom[key] for key in ("bias", "limits_low", "limits_high"))
    direction = "too high" if bias > 0 else "too low"
    reading = f"On average severity is {abs(bias):.2g} percentage points {direction}"
    if low == low:
        reading += f"; 95 % of the differences lie between {low:+.2g} and {high:+.2g} points"
        reading += ", if they are distributed normally (dashed)"
    charts = [(scatter, words), (differences, reading + ".")]
    return {"name": symptom["class"], "charts": charts}


def _reliability_part(figures: dict) -> dict:
    """The reliability diagram with a sentence on what to read from it."""
    before, after = figures["before"], figures["after"]
    worst = max(after["class_errors"], key=after["class_errors"].get)
    words = (
        "On the line, pixels that are said to be 80 % sure are right in 80 % of the cases; below "
        "it the model is too sure. On average what it says is off by "
        f"{percent(before['error'])}, at this temperature by {percent(after['error'])} "
        f"({percent(after['edge_error'])} within three pixels of a border, "
        f"{percent(after['inner_error'])} elsewhere; worst for {worst}, "
        f"{percent(after['class_errors'][worst])}). The classes stay the same."
    )
    chart = reliability_chart(figures)
    return {"chart": chart, "temperature": figures["temperature"], "words": words}


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
    tiles = [(label, percent(metrics[key])) for key, label in TILES.items() if key in metrics]
    if best is not None:
        tiles.append(("best epoch", f"{best['epoch']} of {history[-1]['epoch']}"))
    if "images" in metrics:
        tiles.append(("pictures", f"{metrics['images']:,}"))
    seconds = sum(row.get("seconds", 0) for row in history) or facts.get("seconds")
    if isinstance(seconds, int | float) and seconds > 0:
        tiles.append(("time", _duration(seconds)))
        if not history and "images" in metrics:
            tiles.append(("pictures a second", f"{metrics['images'] / seconds:.3g}"))
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
    rows = zip(counts.tolist(), shares.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def _training_sentence(history: list[dict], best: dict | None) -> str:
    """What the curves say about going on."""
    if best is None or len(history) < 5:
        return ""
    since = history[-1]["epoch"] - best["epoch"]
    text = f"Validation mIoU was highest at epoch {best['epoch']} ({best['valid_miou']:.1%})"
    if since <= 0.1 * len(history):
        return f"{text}, close to the end: more epochs may help."
    return f"{text} and did not improve in the {counted(since, 'epoch|epochs')} after it."


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
