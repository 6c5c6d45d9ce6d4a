"""How good a segmentation is, counted over a whole split and never averaged over batches.

One confusion matrix holds all that the usual figures need. An average of per-batch IoUs would
depend on the batch size and count an absent class as 0; it is here only to be compared with.
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from config import IGNORE_INDEX


class ClassAreas:
    """Figures of classes, of which the areas that are right, true and predicted are enough.

    Args:
        areas: (3, K) pixels of each class: right ones, those of the truth, predicted ones.

    Every figure is per class and NaN where its denominator is 0: a class that is neither in the
    truth nor predicted has no IoU, and the means leave it out.
    """

    def __init__(self, areas: Tensor | np.ndarray):
        self.areas = torch.as_tensor(areas)

    def _over(self, denominator: Tensor, factor: int = 1) -> list[float]:
        # Integers up to 2**53 are exact in float64: the same counts give the same bits everywhere.
        return (factor * self.areas[0].cpu().double() / denominator.cpu().double()).tolist()

    def iou(self) -> list[float]:
        """Intersection over union, TP / (TP + FP + FN)."""
        right, truth, predicted = self.areas
        return self._over(truth + predicted - right)

    def dice(self) -> list[float]:
        """2 TP / (2 TP + FP + FN), also called F1."""
        return self._over(self.areas[1] + self.areas[2], factor=2)

    def precision(self) -> list[float]:
        """TP / (TP + FP): which share of what was called this class is this class."""
        return self._over(self.areas[2])

    def recall(self) -> list[float]:
        """TP / (TP + FN): which share of this class was found."""
        return self._over(self.areas[1])

    def miou(self) -> float:
        """Mean IoU of the classes that occur in the truth or in the prediction."""
        return mean(self.iou())

    def pixel_accuracy(self) -> float:
        """The share of pixels whose class is right."""
        right, total, _ = self.areas.sum(1).tolist()
        return right / total if total else float("nan")


class ConfusionMatrix(ClassAreas):
    """Counts of (true class, predicted class) over every pixel seen that is not ignored.

    Args:
        num_classes: K; `counts` is (K, K) int64, rows the truth, columns the prediction.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @classmethod
    def of(cls, counts: np.ndarray) -> "ConfusionMatrix":
        """The matrix of counts (K, K) that were made elsewhere."""
        matrix = cls(len(counts))
        matrix.counts += torch.from_numpy(counts)
        return matrix

    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add predictions and targets of one shape, class indices; a target of 255 is ignored.

        Without waiting for the device, as a choice by a mask would, and bincount itself.
        """
        bins, ignored = self.num_classes**2, targets == IGNORE_INDEX
        pairs = (targets.long() * self.num_classes + preds.long()).masked_fill(ignored, bins)
        counts = self.counts.new_zeros(bins + 1)
        counts.scatter_add_(0, pairs.flatten(), counts.new_ones(()).expand(pairs.numel()))
        self.counts += counts[:bins].view_as(self.counts)

    @property
    def areas(self) -> Tensor:
        """(3, K) pixels of each class: right ones, those of the truth, predicted ones."""
        return torch.stack([self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)])


def mean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    present = [value for value in values if value == value]
    return sum(present) / len(present) if present else float("nan")


# What classes are called that are the plant itself, without symptoms.
_LEAF_WORDS = """
leaf, leaves, leaf healthy, healthy leaf, foliage, canopy, lamina
healthy, plant, healthy plant, tissue, healthy tissue
stem, stems, stalk, shoot, petiole, root, roots
blatt, blätter, gesund, pflanze
hoja, hojas, feuille, feuilles, folha, folhas, foglia, foglie
叶, 叶片, 葉
"""
LEAF_NAMES = set(re.split(", |\n", _LEAF_WORDS.strip()))


@dataclass(frozen=True)
class SeverityTable:
    """Which classes are symptoms, and what area their severity is a share of.

    Where classes are called the leaf (see `LEAF_NAMES`), the plant is these and all symptoms, and
    severity does not depend on how close the camera was; without one, it is a share of the picture.

    Args:
        symptoms: indices of the classes that have a severity; the last is *the* severity where a
            single number is told. None where there is but ground and leaf.
        whole: indices of the classes whose areas together are the whole.
    """

    symptoms: tuple[int, ...]
    whole: tuple[int, ...]

    @classmethod
    def of(cls, names: tuple[str, ...]) -> "SeverityTable":
        """The table of classes of these names; the first is the ground unless it is the leaf."""
        words = [re.sub(r"[\W_]+", " ", name).strip().casefold() for name in names]
        leaf = tuple(i for i, word in enumerate(words) if word in LEAF_NAMES)
        symptoms = tuple(i for i in range(1, len(names)) if i not in leaf)
        return cls(symptoms, (*leaf, *symptoms) if leaf else tuple(range(len(names))))

    def shares(self, pixels: np.ndarray) -> np.ndarray:
        """Each symptom's severity, (..., S) in [0, 1], of the classes' pixels (..., K).

        0 where there is no plant.
        """
        whole = pixels[..., list(self.whole)].sum(-1, keepdims=True)
        return pixels[..., list(self.symptoms)] / np.maximum(whole, 1)

    def severity(self, pixels: np.ndarray) -> np.ndarray:
        """The last symptom's severity, (...) in [0, 1], NaN where no class is a symptom.

        Args:
            pixels: as `shares` takes them.
        """
        shares = self.shares(pixels)
        return shares[..., -1] if self.symptoms else np.full(shares.shape[:-1], np.nan)

    def whole_in_words(self, names: tuple[str, ...]) -> str:
        """What severity is a share of: the classes that are the plant, or the picture."""
        if len(self.whole) == len(names):
            return "the picture"
        return " and ".join(names[i] for i in self.whole)

    def describe(self, names: tuple[str, ...]) -> str:
        """What severity is, in a sentence."""
        if not self.symptoms:
            return f"There is no severity: none of the classes {', '.join(names)} is a symptom."
        symptom = names[self.symptoms[-1]]
        return f"Severity is the share of {symptom} in {self.whole_in_words(names)}."


def article_batch_miou(areas: np.ndarray) -> float:
    """The article's figure for one batch, of its (3, K) areas: an absent class has an IoU of 0."""
    right, truth, predicted = areas.astype(np.float64)
    return float((right / np.maximum(truth + predicted - right, 1)).mean())


def boundary_counts(pred: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """Intersections and unions of the classes' boundary bands (Cheng et al. 2021, boundary IoU).

    A class's band holds its pixels that lie within 2 % of the picture's diagonal from its border,
    where the picture's edge counts as a border. IoU looks at areas and hardly sees a border; the
    bands see nothing else.

    Args:
        pred, target: (H, W) class indices; pixels whose target is 255 are left out of both.

    Returns:
        (2, K) int64: intersections, unions. Sum them over a split before dividing.
    """
    valid = target != IGNORE_INDEX
    distance = max(1, round(0.02 * float(np.hypot(*target.shape))))
    counts = np.zeros((2, num_classes), dtype=np.int64)
    for index in range(num_classes):
        truth, guess = (_band((mask == index) & valid, distance) for mask in (target, pred))
        counts[0, index] = np.count_nonzero(truth & guess)
        counts[1, index] = np.count_nonzero(truth | guess)
    return counts


def _band(mask: np.ndarray, distance: int) -> np.ndarray:
    """The pixels of a mask that `distance` erosions with a 3x3 square remove."""
    if not mask.any():
        return mask
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    # The chessboard distance to the outside is one more than the erosions that a pixel survives.
    depth = cv2.distanceTransform(framed, cv2.DIST_C, 3)[1:-1, 1:-1]
    return mask & (depth <= distance)
