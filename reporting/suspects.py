"""The page of masks that may be wrong: photograph, mask and prediction, the dispute outlined."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from config import ClassTable
from data.images import encode_jpeg, shrink
from reporting.pages import jpeg_uri, render
from reporting.samples import VIEW_SIDE, legend
from utils import overlay

OUTLINE = (240, 228, 66)  # Okabe and Ito's yellow, RGB


@dataclass(frozen=True)
class SuspectView:
    """One mask to look at.

    Args:
        quality: in [0, 1], low where the mask is doubted.
        words: what it says and what the model sees instead.
        image: HWC uint8 RGB.
        mask, pred: (h, w) class indices of one size.
        boxes: left, top, width, height of the disputed regions, in their pixels, the first one
            the weightiest.
    """

    name: str
    quality: float
    words: str
    image: np.ndarray
    mask: np.ndarray
    pred: np.ndarray
    boxes: list[tuple[int, int, int, int]]


def write_suspects_page(
    path: Path, title: str, classes: ClassTable, suspects: Iterable[SuspectView]
) -> None:
    """Write suspects.html whole, the suspects in their order.

    Raises:
        OSError: the file cannot be written.
    """
    shown = [_view(suspect, classes) for suspect in suspects]
    colours = legend(classes)["Classes"]
    render(path, "suspects.html", title=title, legend=colours, suspects=shown)


def _view(suspect: SuspectView, classes: ClassTable) -> dict:
    """A suspect's three pictures as data URIs."""
    image = shrink(suspect.image, 2 * VIEW_SIDE)
    height, width = image.shape[:2]
    scale = width / suspect.mask.shape[1], height / suspect.mask.shape[0]
    views = {}
    for label, mask in (("Photograph", None), ("Mask", suspect.mask), ("Model", suspect.pred)):
        view = image.copy()
        if mask is not None:
            own = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            view = overlay(image, own, classes)
        for rank, (left, top, w, h) in enumerate(suspect.boxes):
            start = round(left * scale[0]) - 4, round(top * scale[1]) - 4
            end = round((left + w) * scale[0]) + 4, round((top + h) * scale[1]) + 4
            cv2.rectangle(view, start, end, OUTLINE, 3 if rank == 0 else 1)
        views[label] = jpeg_uri(encode_jpeg(shrink(view, VIEW_SIDE), 90, "4:4:4"))
    facts = {"name": suspect.name, "quality": suspect.quality, "words": suspect.words}
    return facts | {"pictures": views}
