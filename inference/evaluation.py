"""From a predictor and a split to figures, at each mask's own size, for train.py and evaluate.py.

Pictures pass one at a time, so a split of any length takes constant memory, and per-picture counts
are summed in the order of the files, so that any number of processes gives the same bits.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from common import distributed
from config import IGNORE_INDEX, ClassTable
from data.images import read_image, resize_mask, write_image
from data.masks import MaskReader
from data.pairs import Pair
from datasets import SegmentationDataset
from inference.predictor import Predictor
from metrics import (
    ClassAreas,
    ConfusionMatrix,
    SeverityTable,
    article_batch_miou,
    boundary_counts,
    mean,
)
from reporting.samples import Sample, choose_samples
from utils import letterbox, overlay, side_by_side

ARTICLE_BATCH = 2
# Pixels sampled of each picture, and numbers kept of all of them: of many pictures fewer pixels.
PIXELS, MOST_NUMBERS = 1000, 10_000_000
EDGE = 3  # pixels on both sides of a border of classes
LOWEST = -30.0  # logarithm of a probability; what is less probable would be so in float32 alone
# What the figures of a whole split say, in the order in which they are printed.
MEANINGS = {
    "miou": "mean IoU of the classes, over all pixels of the split (mIoU)",
    "pixel_accuracy": "share of pixels that are right",
    "mean_dice": "mean Dice of the classes",
    "mean_boundary_iou": "mean boundary IoU of the classes",
    "mean_over_images_iou": "mean over images of their mean IoU",
    "severity_error": "mean error of a picture's severity (of the last symptom)",
    "article_batch_mean_iou": "mean over batches of 2, the article's way, for comparison only",
}


@dataclass(frozen=True)
class PixelSample:
    """Some pixels of a picture, equally many of each, so that memory does not grow with its size.

    Args:
        log_probs: (N, K) float16, logarithms of the probabilities.
        targets: (N,) uint8, the true classes, none of them 255.
        edge: (N,) bool, whether a border of true classes is within `EDGE` pixels.
    """

    log_probs: np.ndarray
    targets: np.ndarray
    edge: np.ndarray

    @classmethod
    def of(cls, log_probs: np.ndarray, truth: np.ndarray, places: np.ndarray) -> "PixelSample":
        """The sample at places (N, 2), shares of the height and of the width, of a mask (H, W)."""
        ys, xs = (places * truth.shape).astype(int).T
        targets, kernel = truth[ys, xs], np.ones((2 * EDGE + 1,) * 2, np.uint8)
        edge = (cv2.dilate(truth, kernel) != cv2.erode(truth, kernel))[ys, xs]
        known = targets != IGNORE_INDEX
        logs = np.maximum(log_probs[known], LOWEST).astype(np.float16)
        return cls(logs, targets[known], edge[known])


def evaluate_pairs(
    predictor: Predictor, pairs: list[Pair], reader: MaskReader
) -> tuple[list[dict], np.ndarray]:
    """Measure every picture of a split, shared among the processes.

    Returns:
        a record a picture: its name (`file`), its classes' (3, K) areas as `ClassAreas` has them
        (`areas`), (2, K) boundary counts (`boundary`), the sums of its probabilities (`soft`, a
        `SoftCounts`), and a few pixels (`sample`, a `PixelSample`); and the (K, K) confusion of
        all. A confusion of each would take 180 kB at 150 classes.
    """
    mine = pairs[distributed.rank() :: distributed.world_size()]
    own, step, matrix = [], predictor.batch, ConfusionMatrix(len(predictor.classes))
    numbers = MOST_NUMBERS // (len(predictor.classes) * max(1, len(pairs)))
    pixels = min(PIXELS, max(1, numbers))
    hidden = not distributed.is_main()
    with tqdm(total=len(mine), desc="Evaluating", disable=hidden, dynamic_ncols=True) as bar:
        for first in range(0, len(mine), step):
            group = mine[first : first + step]
            own += evaluate_pictures(predictor, group, reader, matrix, pixels)
            bar.update(len(group))
    shares = distributed.gather(own)
    records = [shares[i % len(shares)][i // len(shares)] for i in range(len(pairs))]
    return records, distributed.sum_over_processes(matrix.counts.to(predictor.device)).cpu().numpy()


def evaluate_pictures(
    predictor: Predictor,
    pairs: list[Pair],
    reader: MaskReader,
    total: ConfusionMatrix,
    pixels: int = PIXELS,
) -> list[dict]:
    """The records of pictures that pass at once, which are added to `total` as well.

    Args:
        pixels: how many are sampled of each picture.
    """
    images = [read_image(pair.image) for pair in pairs]
    truths = [reader.read(pair) for pair in pairs]
    points = [_points(pair, pixels) for pair in pairs]
    sizes = [truth.shape for truth in truths]
    predictions = predictor.read(images, sizes, points=points)
    records = []
    for pair, truth, places, said in zip(pairs, truths, points, predictions, strict=True):
        pred = resize_mask(said.mask, truth.shape)
        matrix = ConfusionMatrix(len(predictor.classes))
        matrix.update(torch.from_numpy(pred), torch.from_numpy(truth))
        total.counts += matrix.counts
        records.append(
            {
                "file": pair.image.name,
                "areas": matrix.areas.numpy(),
                "boundary": boundary_counts(pred, truth, len(predictor.classes)),
                "soft": said.sums,
                "sample": PixelSample.of(said.points, truth, places),
            }
        )
    return records


def _points(pair: Pair, count: int) -> np.ndarray:
    """Places in a picture, (count, 2) in [0, 1), the same ones in every run."""
    name = pair.image.name.encode("utf-8", "surrogateescape")
    return np.random.default_rng(zlib.crc32(name)).random((count, 2))


def split_metrics(records: list[dict], confusion: np.ndarray, classes: ClassTable) -> dict:
    """All figures of a split as `evaluate_pairs` measured it, flat, lists in class order."""
    matrix = ConfusionMatrix.of(confusion)
    intersections, unions = sum(record["boundary"] for record in records)
    with np.errstate(invalid="ignore"):
        boundary_iou = (intersections / unions).tolist()
    areas = [record["areas"] for record in records]
    firsts = range(0, len(areas), ARTICLE_BATCH)
    batches = [article_batch_miou(sum(areas[i : i + ARTICLE_BATCH])) for i in firsts]
    return {
        "images": len(records),
        "classes": list(classes.names),
        "miou": matrix.miou(),
        "pixel_accuracy": matrix.pixel_accuracy(),
        "mean_dice": mean(matrix.dice()),
        "mean_boundary_iou": mean(boundary_iou),
        "mean_over_images_iou": mean([image_miou(record) for record in records]),
        "article_batch_mean_iou": mean(batches),
        "iou": matrix.iou(),
        "dice": matrix.dice(),
        "precision": matrix.precision(),
        "recall": matrix.recall(),
        "boundary_iou": boundary_iou,
        "confusion": matrix.counts.tolist(),
        **severity_metrics(records, classes),
    }


def severity_metrics(records: list[dict], classes: ClassTable) -> dict:
    """How far off the last symptom's severity is: on average, at worst, and where it is missed.

    A NaN and nothing else where no class is a symptom, or neither truth nor prediction shows the
    last one anywhere: 0 would sound as if it had been measured.
    """
    severity = [(record["file"], *last_severity(record["areas"], classes)) for record in records]
    errors = [abs(predicted - true) for _, true, predicted in severity]
    if not any(true > 0 or predicted > 0 for _, true, predicted in severity):
        return {"severity_error": math.nan, "severity_worst": None, "severity_missed": []}
    return {
        "severity_error": mean(errors),
        "severity_worst": severity[errors.index(max(errors))],
        # There, and mostly not found.
        "severity_missed": [row for row in severity if row[1] >= 0.03 and row[2] < row[1] / 4],
    }


def last_severity(areas: np.ndarray, classes: ClassTable) -> tuple[float, float]:
    """True and predicted severity of one picture, of the last symptom, from its areas (3, K)."""
    true, predicted = SeverityTable.of(classes.names).severity(areas[1:]).tolist()
    return true, predicted


def least_sure(records: list[dict], count: int = 10) -> list[tuple[str, float, float]]:
    """The pictures to look at first: (name, confidence, mean IoU), the least sure one first."""
    rows = [(r["file"], r["soft"].confidence(), image_miou(r)) for r in records]
    return sorted(rows, key=lambda row: row[1])[:count]


def image_miou(record: dict) -> float:
    """The mean IoU of one picture's classes."""
    return ClassAreas(record["areas"]).miou()


def format_table(metrics: dict) -> str:
    """The figures as they are printed."""
    columns = ("iou", "boundary_iou", "dice", "precision", "recall")
    width = max(len("class"), *(len(name) for name in metrics["classes"]))
    lines = ["class".ljust(width) + "".join(column.rjust(14) for column in columns)]
    for index, name in enumerate(metrics["classes"]):
        figures = (_figure(metrics[column][index]).rjust(14) for column in columns)
        lines.append(name.ljust(width) + "".join(figures))
    told = {name: text for name, text in MEANINGS.items() if not math.isnan(metrics[name])}
    lines += [f"{_figure(metrics[name])}  {meaning}" for name, meaning in told.items()]
    return "\n".join(lines)


def _figure(value: float) -> str:
    """A share with four digits, a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def example_pictures(
    predictors: list[Predictor], pairs: list[Pair], reader: MaskReader, records: list[dict]
) -> Iterator[Sample]:
    """The best, median and worst pictures of a split with their predictions, one at a time.

    Args:
        predictors: of each pair the one that measured it.
    """
    ious = [image_miou(record) for record in records]
    for rank, indices in choose_samples(ious).items():
        for index in indices:
            image, truth = read_image(pairs[index].image), reader.read(pairs[index])
            pred = next(predictors[index].masks_at([image], [truth.shape]))
            yield Sample(pairs[index].image.name, image, truth, pred, ious[index], rank)


def save_valid_picture(
    path: Path, predictor: Predictor, dataset: SegmentationDataset
) -> np.ndarray:
    """Photograph | truth | prediction of a few validation pictures, the same in every epoch."""
    chosen = np.linspace(0, len(dataset.pairs) - 1, min(4, len(dataset.pairs))).round().astype(int)
    rows = []
    for index in chosen:
        pair = dataset.pairs[index]
        image = read_image(pair.image)
        masks = dataset.reader.read(pair, image.shape[:2]), predictor.masks([image])[0]
        views = [image, *(overlay(image, mask, predictor.classes) for mask in masks)]
        rows.append([letterbox(view, 240, 320) for view in views])
    sheet = side_by_side(rows)
    write_image(path, sheet)
    return sheet
