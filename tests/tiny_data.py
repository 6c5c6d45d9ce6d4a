"""Small photographs and masks that tests train on."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pairs(root: Path, split: str, count: int, seed: int, size=(40, 56)) -> None:
    """Green ground with red discs; the mask is 1 on the discs."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / f"{split}_{part}").mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    for index in range(count):
        center, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(6, 12)
        mask = (np.hypot(y - center[0], x - center[1]) < radius).astype(np.uint8)
        image = rng.integers(0, 60, (*size, 3)).astype(np.uint8)
        image[..., 1] += 80
        image[mask == 1, 0] += 150
        Image.fromarray(image).save(root / f"{split}_images" / f"{split}{index}.png")
        Image.fromarray(mask).save(root / f"{split}_masks" / f"{split}{index}.png")


def write_data(root: Path, train: int = 6, valid: int = 3) -> Path:
    """A whole data set in the article's layout."""
    write_pairs(root, "train", train, 0)
    write_pairs(root, "valid", valid, 1)
    return root
