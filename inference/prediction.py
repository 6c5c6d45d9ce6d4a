"""What a model says of one picture: its mask, and what its probabilities add up to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import Size

# A class that is neither predicted nor probable on 1 % of the picture cannot lower confidence much.
SMOOTHING = 0.01


@dataclass(frozen=True)
class SoftCounts:
    """Sums over the pixels of a picture, (K,) float64 each, with p_k the probability of class k.

    Args:
        pixels: how many are predicted k.
        area: the sum of p_k.
        own: the sum of p_k where k is predicted.
        doubt: the sum of p_k (1 - p_k).
        dice: of an ensemble, the Dice of its models' masks, see `MeanBands`.
    """

    pixels: np.ndarray
    area: np.ndarray
    own: np.ndarray
    doubt: np.ndarray
    dice: np.ndarray | None = None

    def confidence(self) -> float:
        """The Dice to expect of the mask, mean of the classes: how far an ensemble's models agree.

        Of one model it is what its probabilities say:
        2 sum(p y) / sum(p + y) with the mask y (soft Dice confidence, Borges et al. 2024), both
        parts of it increased by a hundredth of the picture: it is 1 and not 0/0 for a class that is
        neither seen nor suspected, and near 1 where a few pixels are suspected.

        Returns:
            a value in [0, 1].
        """
        if self.dice is not None:
            return float(self.dice.mean())
        extra = SMOOTHING * self.pixels.sum()
        return float(((2 * self.own + extra) / (self.pixels + self.area + extra)).mean())


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Args:
        mask: (H, W) uint8 class indices.
        sums: of its probabilities.
        probabilities: (K, H, W) float16 in [0, 1], where they are asked for.
        points: (N, K) float32, logarithms of the probabilities at the points that were asked for.
    """

    mask: np.ndarray
    sums: SoftCounts
    probabilities: np.ndarray | None
    points: np.ndarray | None


class MeanBands(Iterator[tuple[int, Tensor]]):
    """The mean of what several models say, as scores, band by band; each may cut its own bands.

    Args:
        parts: of each model, the bands of one picture.
    """

    def __init__(self, parts: Sequence[Iterator[tuple[int, Tensor]]]):
        self._parts, self._held, self._top = parts, [None] * len(parts), 0
        self._shared, self._areas = 0, 0

    def __next__(self) -> tuple[int, Tensor]:
        for index, part in enumerate(self._parts):
            if self._held[index] is None:  # all end at the picture's last row
                self._held[index] = next(part)[1].softmax(0)
        rows = min(probs.shape[1] for probs in self._held)
        parts = [probs[:, :rows] for probs in self._held]
        self._held = [p[:, rows:] if p.shape[1] > rows else None for p in self._held]
        self._compare([_classes(part).flatten() for part in parts], len(parts[0]))
        top, self._top = self._top, self._top + rows
        return top, (sum(parts) / len(parts)).clamp(min=1e-9).log()

    def _compare(self, masks: list[Tensor], count: int) -> None:
        """Add what a band's masks (N,) have in common, and their areas."""
        for index, mask in enumerate(masks):
            self._areas += torch.bincount(mask, minlength=count).cpu()
            for other in masks[:index]:
                shared = torch.where(mask == other, mask, count)
                self._shared += torch.bincount(shared, minlength=count + 1)[:count].cpu()

    @property
    def dice(self) -> np.ndarray:
        """How far the masks of the bands so far agree: (K,) in [0, 1], 1 for a class in none.

        The Dice of two of them, all pairs taken together. Their disagreement tells of errors that
        each model by itself is sure of (Roy et al. 2019, NeuroImage 195: 11).
        """
        of_pairs = (len(self._parts) - 1) * self._areas
        return torch.where(of_pairs > 0, 2 * self._shared / of_pairs, 1.0).numpy()


def collect_mask(bands: Iterator[tuple[int, Tensor]], size: Size) -> np.ndarray:
    """Class indices (H, W) uint8 of scores that come as `collect` takes them."""
    mask = np.empty(size, np.uint8)
    for top, band in bands:
        mask[top : top + band.shape[1]] = _classes(band).to("cpu", torch.uint8).numpy()
    return mask


def _classes(band: Tensor) -> Tensor:
    # On the CPU, max() is twenty times as fast as argmax(), and names the same class.
    return band.max(0).indices


def collect(
    bands: Iterator[tuple[int, Tensor]],
    size: Size,
    num_classes: int,
    with_probabilities: bool = False,
    points: np.ndarray | None = None,
    temperature: float = 1.0,
) -> Prediction:
    """Read a picture's scores, which come band by band from the top.

    Args:
        bands: each band's first row, and its scores (K, rows, W).
        size: (height, width) of all of them.
        num_classes: K.
        points: (N, 2) places as shares of the height and of the width, in [0, 1).
        temperature: what the scores are divided by before they become `probabilities`; all else is
            as the model says it.
    """
    mask = np.empty(size, np.uint8)
    probabilities = np.empty((num_classes, *size), np.float16) if with_probabilities else None
    sums = torch.zeros(4, num_classes, dtype=torch.float64)
    ys, xs = np.empty((2, 0), int) if points is None else (points * size).astype(int).T
    picked = np.empty((len(ys), num_classes), np.float32)
    for top, band in bands:
        rows = slice(top, top + band.shape[1])
        classes, logs = _classes(band), band.log_softmax(0)
        probs = logs.exp()
        mask[rows] = classes.to("cpu", torch.uint8).numpy()
        sums += _sums(probs, classes.flatten()).cpu()
        if probabilities is not None:
            said = probs if temperature == 1 else (logs / temperature).softmax(0)
            probabilities[:, rows] = said.cpu().numpy()
        inside = (rows.start <= ys) & (ys < rows.stop)
        if inside.any():
            places = torch.from_numpy(ys[inside] - top), torch.from_numpy(xs[inside])
            picked[inside] = logs[:, *places].T.cpu().numpy()
    dice = bands.dice if isinstance(bands, MeanBands) else None
    counts = SoftCounts(*sums.numpy(), dice)
    return Prediction(mask, counts, probabilities, None if points is None else picked)


def _sums(probs: Tensor, classes: Tensor) -> Tensor:
    """The rows of `SoftCounts`, (4, K) float64, of probabilities (K, rows, W)."""
    count = len(probs)
    area = probs.sum((1, 2), dtype=torch.float64)
    squares = torch.linalg.vector_norm(probs.flatten(1), dim=1, dtype=torch.float64) ** 2
    pixels = torch.bincount(classes, minlength=count).double()
    own = torch.bincount(classes, probs.amax(0).flatten().double(), minlength=count)
    return torch.stack([pixels, area, own, area - squares])
