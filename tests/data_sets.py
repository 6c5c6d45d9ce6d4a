"""Data sets of a few small pictures, with masks of any kind."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.images import write_image
from data.masks import MaskReader
from data.pairs import Pair, match_split, usable_pairs
from data.source import open_source

COFFEE = "background:0,0,0::\nleaf:0,176,0::\nsymptom:255,0,0::\n"
COLORS = np.array([(0, 0, 0), (0, 176, 0), (255, 0, 0)], np.uint8)


def photo(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def blobs(values=(0, 1), size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A mask of upright stripes, unsymmetrical, with each of `values` in large areas."""
    mask = np.full(size, values[0], np.uint8 if max(values) < 256 else np.uint16)
    for number, value in enumerate(values[1:]):
        mask[4 : size[0] // 2, 4 + 12 * number : 12 + 12 * number] = value
    return mask


def make_data(root: Path, masks: list, labelmap: str | None = None, ending: str = ".png") -> Path:
    """A data set with these masks (arrays, or Pillow pictures) for training and validation."""
    for split in ("train", "valid"):
        for number, mask in enumerate(masks):
            picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            image = root / f"{split}_images" / f"{number:03d}.png"
            write_image(image, photo(number + 100 * (split == "valid"), picture.size[::-1]))
            path = root / f"{split}_masks" / f"{number:03d}{ending}"
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
    if labelmap is not None:
        (root / "labelmap.txt").write_text(labelmap)
    return root


def save_with_exif(path: Path, image: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)


def reader_of(root: Path) -> MaskReader:
    """How the masks of a data set are read, as its training split decides."""
    return open_source(root, ("train",), photographs=False).reader


def find_pairs(root: Path, split: str, skip_bad: bool = False) -> list[Pair]:
    """The pairs of a split of a data set in this program's own layout, or CVAT's."""
    return usable_pairs(match_split(root, split), skip_bad)


def read_first(root: Path) -> np.ndarray:
    return reader_of(root).read(find_pairs(root, "train")[0])
