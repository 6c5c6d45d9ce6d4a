"""Which masks contradict what a model that has not learnt from them sees in the photograph.

Label quality of segmentations as in Lad and Mueller 2023 ("Estimating label quality and errors in
semantic segmentation data via any model"): a pixel's quality is the probability of the class that
the mask gives it; a picture's is that of its worst pixels (softmin).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from common import distributed
from common.files import write_csv
from config import IGNORE_INDEX, Size
from data.images import fit_within, read_image, resize_mask
from data.masks import MaskReader
from data.pairs import Pair
from inference.predictor import Predictor
from reporting.suspects import SuspectView
from trust.folds import Part

BORDER = 3  # pixels on both sides of a class's border, where annotators differ and nobody errs
SHARPNESS = 0.1  # temperature of the softmin, Lad and Mueller's
LARGEST = 1024  # pixels along the longer side at which a mask is judged
MOST_REGIONS = 5  # that are kept of a mask


@dataclass(frozen=True)
class Region:
    """A connected patch of one labelled class where the model sees another one.

    Args:
        weight: the sum over its pixels of how much more probable the other class is.
        pixels: of the patch.
        box: left, top, width, height.
        labelled, seen: class indices.
    """

    weight: float
    pixels: int
    box: tuple[int, int, int, int]
    labelled: int
    seen: int


@dataclass(frozen=True)
class Suspect:
    """What a model says of one mask.

    Args:
        file: the photograph's name.
        quality: see `label_quality`.
        regions: where it disagrees, weightiest first, in pixels of a mask of `size`.
        size: (height, width).
        pair: the files.
    """

    file: str
    quality: float
    regions: list[Region]
    size: Size
    pair: Pair

    def in_mask(self, box: tuple[int, int, int, int]) -> list[float]:
        """Left, top, width and height of a region as shares of the mask's width and height."""
        h, w = self.size
        return [round(value / side, 4) for value, side in zip(box, (w, h, w, h), strict=True)]


def counted_pixels(mask: np.ndarray) -> np.ndarray:
    """The pixels (H, W) of a mask that count: neither ignored nor near a border of classes."""
    kernel = np.ones((2 * BORDER + 1,) * 2, np.uint8)
    inner = cv2.dilate(mask, kernel) == cv2.erode(mask, kernel)
    return inner & (mask != IGNORE_INDEX)


def label_quality(probs: np.ndarray, mask: np.ndarray) -> float:
    """The quality of a mask in [0, 1], low where some of its pixels are most improbable.

    Args:
        probs: (K, H, W), of a model that was not trained on this mask.
        mask: (H, W) uint8 class indices, 255 ignored.

    Returns:
        1 where no pixel counts.
    """
    counted = counted_pixels(mask)
    if not counted.any():
        return 1.0
    own = np.take_along_axis(probs, np.where(counted, mask, 0)[None].astype(np.intp), axis=0)[0]
    quality = own[counted].astype(np.float64)
    weights = np.exp((quality.min() - quality) / SHARPNESS)
    return float((quality * weights).sum() / weights.sum())


def disputed_regions(probs: np.ndarray, mask: np.ndarray) -> list[Region]:
    """The patches where the model sees another class than the mask names, weightiest first.

    Args:
        probs, mask: as `label_quality` takes them.
    """
    counted, seen = counted_pixels(mask), probs.argmax(0)
    own = np.take_along_axis(probs, np.where(counted, mask, 0)[None].astype(np.intp), axis=0)[0]
    gain = np.where(counted & (seen != mask), probs.max(0) - own, 0).astype(np.float64)
    # Two patches that touch are apart where they claim different things.
    claims = np.where(gain > 0, mask.astype(np.int32) * len(probs) + seen + 1, 0)
    regions = []
    for claim in np.unique(claims[claims > 0]).tolist():
        patches = (claims == claim).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(patches)
        weights = np.bincount(labels.ravel(), gain.ravel(), count)
        labelled, other = divmod(claim - 1, len(probs))
        for weight, (*box, pixels) in zip(weights[1:], stats[1:].tolist(), strict=True):
            regions.append(Region(float(weight), pixels, tuple(box), labelled, other))
    return sorted(regions, key=lambda region: -region.weight)


def find_suspects(parts: list[Part], reader: MaskReader) -> list[Suspect]:
    """Judge every mask by a predictor that has not learnt from it, the worst mask first."""
    jobs = [(predictor, pair) for _, predictor, own in parts for pair in own]
    mine = jobs[distributed.rank() :: distributed.world_size()]
    hidden = not distributed.is_main()
    bar = tqdm(mine, "Judging masks", disable=hidden, dynamic_ncols=True, delay=2)
    found = [judge_mask(predictor, pair, reader)[0] for predictor, pair in bar]
    everything = [suspect for share in distributed.gather(found) for suspect in share]
    return sorted(everything, key=lambda suspect: (suspect.quality, suspect.file))


def judge_mask(
    predictor: Predictor, pair: Pair, reader: MaskReader
) -> tuple[Suspect, np.ndarray, np.ndarray, np.ndarray]:
    """One mask's verdict, with the photograph, mask and prediction that it was made of.

    Returns:
        suspect; image HWC uint8 RGB; mask and prediction (h, w) uint8 at the size at which regions
        are told, the mask's own or `LARGEST` pixels along its longer side.
    """
    image, truth = read_image(pair.image), reader.read(pair)
    size = truth.shape if max(truth.shape) <= LARGEST else fit_within(truth.shape, (LARGEST,) * 2)
    mask = resize_mask(truth, size)
    said = next(predictor.read([image], [size], with_probabilities=True))
    probs = said.probabilities.astype(np.float32)
    if probs.shape[1:] != mask.shape:  # tiles keep the photograph's own size
        turned = (size[1], size[0])
        probs = np.stack([cv2.resize(p, turned, interpolation=cv2.INTER_AREA) for p in probs])
    regions = disputed_regions(probs, mask)[:MOST_REGIONS]
    suspect = Suspect(pair.image.name, label_quality(probs, mask), regions, size, pair)
    return suspect, image, mask, probs.argmax(0).astype(np.uint8)


def write_suspects(path: Path, suspects: list[Suspect], names: tuple[str, ...]) -> None:
    """Write suspects.csv: a line a picture, its quality and its most disputed region."""
    head = ["file", "quality", "labelled", "seen", "left", "top", "width", "height", "weight"]
    rows = []
    for suspect in suspects:
        row = [suspect.file, f"{suspect.quality:.6f}"]
        for region in suspect.regions[:1]:
            row += [names[region.labelled], names[region.seen]]
            row += [*suspect.in_mask(region.box), f"{region.weight:.1f}"]
        rows.append(row + [""] * (len(head) - len(row)))
    write_csv(path, head, rows)


def suspect_views(
    suspects: list[Suspect], parts: list[Part], reader: MaskReader, count: int = 30
) -> Iterator[SuspectView]:
    """The worst masks to look at, one at a time."""
    predictors = {pair: predictor for _, predictor, own in parts for pair in own}
    names = reader.classes.names
    for suspect in suspects[:count]:
        if suspect.regions:
            _, image, mask, pred = judge_mask(predictors[suspect.pair], suspect.pair, reader)
            first = suspect.regions[0]
            words = f"labelled {names[first.labelled]}, seen as {names[first.seen]}"
            boxes = [region.box for region in suspect.regions]
            yield SuspectView(suspect.file, suspect.quality, words, image, mask, pred, boxes)
