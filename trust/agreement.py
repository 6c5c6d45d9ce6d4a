"""How well predicted severities agree with the true ones, with an interval for what is not known.

mIoU counts pixels; a plant scientist uses a picture's severity. Two models of nearly the same mIoU
can differ widely in it, so it is measured by itself, in the figures of plant pathology (Bock et al.
2010, Crit. Rev. Plant Sci. 29: 59): Lin's concordance, bias, and Bland and Altman's limits.
"""

from collections.abc import Hashable, Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from common.files import write_csv
from common.text import listed
from config import ClassTable
from metrics import SeverityTable

DRAWS = 2000  # of the bootstrap: its 2.5 % quantile is then off by less than its own tenth
COVERAGE = 0.95


def severity_agreement(records: list[dict], classes: ClassTable) -> list[dict]:
    """Each symptom's agreement over the pictures of a split.

    Args:
        records: of `inference.evaluation.evaluate_pairs`, each with its `group` where pictures of
            one plant or scene are known.

    Returns:
        a dictionary a symptom class that occurs in a mask or a prediction (see `unmeasured`): its
        name (`class`), one value a picture (`files`, `true` and `predicted` severity in [0, 1]),
        and the figures of `agreement`.
    """
    table = SeverityTable.of(classes.names)
    areas = np.stack([record["areas"] for record in records])
    true, predicted = table.shares(areas[:, 1]), table.shares(areas[:, 2])  # (pictures, S)
    files = [record["file"] for record in records]
    groups = [record.get("group", number) for number, record in enumerate(records)]
    return [
        {"class": classes.names[index], "files": files, "true": x.tolist(), "predicted": y.tolist()}
        | agreement(x, y, groups)
        for index, x, y in zip(table.symptoms, true.T, predicted.T, strict=True)
        if x.any() or y.any()
    ]


def unmeasured(table: list[dict], classes: ClassTable) -> str:
    """Which symptoms `severity_agreement` has left out, and why, in a sentence; "" for none."""
    names, known = classes.names, SeverityTable.of(classes.names)
    if not known.symptoms:
        return known.describe(names)
    measured = {symptom["class"] for symptom in table}
    absent = [names[index] for index in known.symptoms if names[index] not in measured]
    if not absent:
        return ""
    return f"No severity of {listed(absent)}: neither in the masks nor predicted in any picture."


def agreement(
    true: np.ndarray, predicted: np.ndarray, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Figures of agreement of two series (N,).

    Args:
        groups: of each picture, as `concordance_interval` takes them.

    Returns:
        `concordance`, its factors `precision` and `accuracy`, and its bootstrap interval
        `concordance_low`, `concordance_high` at 95 %; `bias`, the mean of predicted - true; `rmse`;
        `limits_low`, `limits_high`, between which 95 % of the differences lie if they are normal
        (Bland and Altman 1986, Lancet 327: 307). NaN where a figure does not exist.
    """
    concordance, precision, accuracy = lin_concordance(true, predicted)
    low, high = concordance_interval(true, predicted, groups)
    difference = predicted - true
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return {
        "concordance": concordance,
        "concordance_low": low,
        "concordance_high": high,
        "precision": precision,
        "accuracy": accuracy,
        "bias": bias,
        "rmse": float(np.sqrt((difference**2).mean())),
        "limits_low": bias - spread,
        "limits_high": bias + spread,
    }


def lin_concordance(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Lin's concordance correlation coefficient and its two factors (Lin 1989, Biometrics 45: 255).

    Returns:
        the concordance, 1 where all points lie on the 1:1 line; the precision (Pearson's r), how
        close they lie to any line; and the accuracy (C_b), how close that line is to 1:1. NaN
        where a figure does not exist, as for pictures that are all alike.
    """
    x, y = (np.asarray(values, np.float64) for values in (true, predicted))
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    concordance = _ratio(2 * covariance, x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    precision = _ratio(covariance, x.std() * y.std())
    return concordance, precision, _ratio(concordance, precision)


def concordance_interval(
    true: np.ndarray, predicted: np.ndarray, groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """The percentile bootstrap's interval of the concordance at 95 %; NaN with fewer than three.

    Args:
        groups: of each picture; groups are drawn whole, since pictures of one plant resemble each
            other and single ones would make it too narrow. Each its own if not given.
    """
    groups = groups or range(len(true))
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    count = len(places)
    if count < 3:
        return float("nan"), float("nan")
    # The concordance does not change with a common shift, the sums' rounding errors do.
    x, y = np.asarray(true) - np.mean(true), np.asarray(predicted) - np.mean(true)
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    sums = np.zeros((count, terms.shape[1]))
    np.add.at(sums, [places[group] for group in groups], terms)
    random = np.random.default_rng(0)
    drawn = [
        np.bincount(random.integers(count, size=count), minlength=count) @ sums
        for _ in range(DRAWS)
    ]
    n, *moments = np.array(drawn).T
    mx, my, xx, yy, xy = (moment / n for moment in moments)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 2 * (xy - mx * my) / (xx - mx**2 + yy - my**2 + (mx - my) ** 2)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def figures(symptom: dict) -> dict:
    """An entry of `severity_agreement` without what is one value a picture."""
    return {name: value for name, value in symptom.items() if not isinstance(value, list)}


def describe_all(table: list[dict], classes: ClassTable) -> str:
    """What `severity_agreement` found, as it is printed: a line a symptom, and what is left out."""
    return "\n".join(filter(None, [*map(describe, table), unmeasured(table, classes)]))


def describe(symptom: dict) -> str:
    """An entry of `severity_agreement` as it is printed."""
    text = f"Severity of {symptom['class']}: "
    if not isfinite(symptom["limits_low"]):
        return f"{text}bias {symptom['bias']:+.2%}; one picture is too few for an agreement."
    if not isfinite(symptom["concordance"]):
        return text + "no concordance, the pictures are all alike."
    low, high = symptom["concordance_low"], symptom["concordance_high"]
    interval = f"{low:.3f} to {high:.3f}" if isfinite(low) else "too few for an interval"
    return (
        f"{text}concordance with the truth {symptom['concordance']:.3f} (95 %: {interval}), bias "
        f"{symptom['bias']:+.2%}, 95 % of the errors within {symptom['limits_low']:+.2%} and "
        f"{symptom['limits_high']:+.2%}"
    )


def write_severities(path: Path, table: list[dict]) -> None:
    """Write severity.csv: true and predicted severity of each picture, in [0, 1], by symptom.

    Without a symptom there is none, nor one that an earlier evaluation left.
    """
    if not table:
        path.unlink(missing_ok=True)
        return
    head, columns = ["file"], []
    for symptom in table:
        head += [f"true_{symptom['class']}", f"predicted_{symptom['class']}"]
        columns += [symptom["true"], symptom["predicted"]]
    rows = zip(table[0]["files"], *columns, strict=True)
    write_csv(path, head, ([name, *(f"{v:.6f}" for v in values)] for name, *values in rows))
