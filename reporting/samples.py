"""Predictions to look at: which ones, and how truth, prediction and errors are shown."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from config import IGNORE_INDEX, ClassTable
from data.images import encode_jpeg, shrink
from reporting.pages import jpeg_uri
from utils import overlay

# Colours of the error map, RGB: four of Okabe and Ito's, which stay apart for colour-blind readers.
RIGHT, MISSED = (0, 158, 115), (213, 94, 0)
FALSE_ALARM, WRONG_CLASS = (86, 180, 233), (240, 228, 66)
IGNORED = (185, 185, 185)

# The longer side of an embedded view, in pixels.
VIEW_SIDE = 640


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


def sample_views(samples: Iterable[Sample], classes: ClassTable) -> dict[str, list[dict]]:
    """The samples by rank, worst first, their four views encoded."""
    ranked: dict[str, list[dict]] = {"worst": [], "median": [], "best": []}
    for sample in samples:
        ranked[sample.rank].append(_views(sample, classes))
    return {rank: views for rank, views in ranked.items() if views}


def _views(sample: Sample, classes: ClassTable) -> dict:
    """Photograph, truth, prediction and error map of one sample, as data URIs."""
    # Masks are drawn at twice the views' size and then averaged, so that small spots do not vanish.
    image = shrink(sample.image, 2 * VIEW_SIDE)
    size = image.shape[1], image.shape[0]
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
    views = {label: shrink(picture, VIEW_SIDE) for label, picture in pictures.items()}
    # Colours at full resolution: small coloured spots would turn grey.
    uris = {label: jpeg_uri(encode_jpeg(view, 92, "4:4:4")) for label, view in views.items()}
    height, width = views["Photograph"].shape[:2]
    return {"name": sample.name, "iou": sample.iou, "size": (width, height), "pictures": uris}


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


def legend(classes: ClassTable) -> dict[str, list[tuple]]:
    """(colour, words) for the overlays and for the error map."""
    ground = classes.names[0]
    shown = [pair for pair in zip(classes.vis_colors, classes.names, strict=True) if any(pair[0])]
    mistakes = {MISSED: f"missed: called {ground}", FALSE_ALARM: f"false alarm: is {ground}"}
    errors = {RIGHT: "right"} | mistakes | {WRONG_CLASS: "wrong class", IGNORED: "ignored"}
    return {"Classes": shown, "Errors": list(errors.items())}
