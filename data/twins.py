"""Photographs that show the same: copies of a file in another size or quality, frames of a burst.

Two photographs are alike where their thumbnails differ by less than copies of one file do at most.
Measured on two sets of leaves: copies at 60 % of the size and quality 60 as JPEG differ by up to 2
levels of 255, and no two different photographs by less than 18.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.images import map_files, read_image

SIDE = 16  # of a thumbnail, in pixels
# Root mean square difference of two thumbnails that are alike: in levels of 255, and as a share of
# the paler one's own contrast, so that pictures of little contrast are not all the same.
LEVELS, SHARE = 5.0, 0.15
BLOCK = 256  # thumbnails compared with all others at once, which bounds the memory


def alike(paths: Sequence[Path]) -> list[int]:
    """For each photograph the index of the first one that it is alike, by itself or by others.

    Raises:
        UserError: a photograph cannot be read.
    """
    small = map_files(_thumbnail, list(paths), "Looking for photographs that are alike")
    return joined(np.stack(small).reshape(len(small), -1))


def _thumbnail(path: Path) -> np.ndarray:
    """RGB averages of a photograph's cells, (SIDE, SIDE, 3) float32 in [0, 255]."""
    size = (SIDE, SIDE)
    return cv2.resize(read_image(path), size, None, 0, 0, cv2.INTER_AREA).astype(np.float32)


def joined(small: np.ndarray) -> list[int]:
    """For each of the thumbnails (N, D) the first one that a chain of likeness leads to."""
    first = np.arange(len(small))
    centred = small - small.mean(0)
    squares = (centred**2).sum(1)
    limits = np.minimum(LEVELS, SHARE * small.std(1)) ** 2 * small.shape[1]
    for top in range(0, len(small), BLOCK):
        part = slice(top, top + BLOCK)
        distances = squares[part, None] + squares - 2 * centred[part] @ centred.T
        for near in distances < np.minimum(limits[part, None], limits):
            linked = np.unique(first[near])
            if len(linked) > 1:
                first[np.isin(first, linked)] = linked[0]
    return first.tolist()
