"""Photographs at one scale on the disk, of which crops and tiles are read, and never the whole.

A photograph of 12 megapixels takes a third of a second to decode and 36 MB to hold; a crop of it,
once it lies decoded on the disk, a millisecond and its own pixels.
"""

import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from common.errors import UserError
from common.text import printable
from config import IGNORE_INDEX, Size
from data.images import fit_within, image_size, map_files, read_image, resize_image
from data.masks import MaskReader
from data.pairs import Pair

try:
    import fcntl
except ImportError:  # Windows has no such locks; what a killed training left stays there
    fcntl = None

PREFIX, LOCK = "photographs-", "lock"
POINTS = 256  # pixels of each class of a photograph that are remembered, to centre crops on
MAX_TILES = 16  # of a photograph, that are looked at in each validation


def view_size(size: Size, photo_size: int | None) -> Size:
    """The (height, width) at which a photograph is looked at.

    Args:
        photo_size: its longer side, None for the photograph's own resolution.
    """
    return tuple(size) if photo_size is None else fit_within(size, (photo_size, photo_size))


@dataclass(frozen=True)
class Box:
    """A region of a photograph, in pixels; it may reach beyond the lower and the right edge."""

    top: int
    left: int
    height: int
    width: int


def cut(array: np.ndarray, box: Box, fill: tuple[int, ...]) -> np.ndarray:
    """A region of (H, W, C) uint8, `fill` where there is none: (box.height, box.width, C)."""
    part = array[box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[:2] == (box.height, box.width):
        return np.array(part)
    whole = np.full((box.height, box.width, array.shape[2]), fill, np.uint8)
    whole[: part.shape[0], : part.shape[1]] = part
    return whole


def tile_boxes(size: Size, tile: Size, most: int = MAX_TILES) -> list[Box]:
    """Tiles side by side that cover a photograph, or `most` of them, evenly spread."""
    boxes = [
        Box(top, left, *tile)
        for top in range(0, size[0], tile[0])
        for left in range(0, size[1], tile[1])
    ]
    if len(boxes) <= most:
        return boxes
    return [boxes[i] for i in np.linspace(0, len(boxes) - 1, most).round().astype(int)]


class PhotoStore:
    """The photographs and masks of a split, decoded at the scale at which they are looked at.

    They lie in a temporary folder until the store goes, as (H, W, 4) uint8: RGB and class. What
    would fill more than half of the free disk is decoded anew each time.

    Args:
        pairs: from a data source, checked.
        reader: how masks are read.
        photo_size: see `view_size`.
    """

    def __init__(self, pairs: list[Pair], reader: MaskReader, photo_size: int | None):
        self.pairs, self.reader = pairs, reader
        sizes = map_files(lambda pair: image_size(pair.image), pairs, "Reading sizes")
        self.sizes = [view_size(size, photo_size) for size in sizes]
        self.folder: Path | None = None
        self.stored = 0  # of the first photographs
        self.class_pixels = np.zeros(len(reader.classes), np.int64)
        self.points: list[dict[int, np.ndarray]] = []

    def side(self) -> int:
        """The median longer side of the photographs, in pixels."""
        return round(float(np.median([max(size) for size in self.sizes])))

    def fill(self) -> None:
        """Decode all photographs once, before workers start that read what lies on the disk."""
        if self.folder is not None:
            return
        _remove_leftovers(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        weakref.finalize(self, _remove, self.folder, os.getpid(), _claim(self.folder))
        bytes_up_to = np.cumsum([4 * height * width for height, width in self.sizes])
        room = shutil.disk_usage(self.folder).free // 2
        self.stored = int(np.searchsorted(bytes_up_to, room, side="right"))
        found = map_files(self._keep, list(range(len(self.pairs))), "Decoding photographs")
        self.points = [points for points, _ in found]
        self.class_pixels = sum(counts for _, counts in found)

    def gib(self) -> float:
        """GiB that all photographs take, decoded."""
        return sum(4 * height * width for height, width in self.sizes) / 2**30

    def read(self, index: int, box: Box, fill: tuple[int, int, int]) -> tuple:
        """A region of a photograph, HWC uint8 RGB, and of its mask, (H, W) uint8.

        Args:
            fill: RGB where the photograph does not reach; the mask is 255 there.

        Raises:
            UserError: the photograph was not stored and can no longer be read.
        """
        if index < self.stored and self.folder is not None:
            array = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
        else:
            array = self._decode(index)
        part = cut(array, box, (*fill, IGNORE_INDEX))
        return np.ascontiguousarray(part[..., :3]), np.ascontiguousarray(part[..., 3])

    def _path(self, index: int) -> Path:
        return self.folder / f"{index}.npy"

    def _decode(self, index: int) -> np.ndarray:
        pair, size = self.pairs[index], self.sizes[index]
        image = read_image(pair.image)
        if view_size(image.shape[:2], max(size)) != size:
            raise UserError(f"{printable(pair.image)} changed while training; start the run again.")
        return np.dstack([resize_image(image, size), self.reader.read(pair, size)])

    def _keep(self, index: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Store a photograph; where it shows each class, and how many pixels of each."""
        array = self._decode(index)
        if index < self.stored:
            np.save(self._path(index), array, allow_pickle=False)
        target = np.ascontiguousarray(array[..., 3]).ravel()
        counts = np.bincount(target, minlength=256)[: len(self.reader.classes)]
        rng = np.random.default_rng(index)
        drawn, points = rng.integers(0, target.size, 64 * POINTS), {}
        for label in np.flatnonzero(counts).tolist():
            places = drawn[target[drawn] == label][:POINTS]
            if len(places) < POINTS:  # a rare class: its every pixel is looked for
                every = np.flatnonzero(target == label)
                places = rng.choice(every, min(POINTS, len(every)), replace=False)
            points[label] = np.stack(np.divmod(places, array.shape[1]), axis=1).astype(np.int32)
        return points, counts


def _claim(folder: Path) -> TextIO:
    """A lock that the system drops with the last process that reads the folder."""
    file = open(folder / LOCK, "w")  # noqa: SIM115  it stays open as long as the folder is used
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _remove(folder: Path, owner: int, lock: TextIO) -> None:
    """Remove a store's folder, unless a worker ends that was forked from its owner."""
    if os.getpid() == owner:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of trainings that were killed: nobody holds their locks."""
    for lock in parent.glob(f"{PREFIX}*/{LOCK}") if fcntl is not None else ():
        with suppress(OSError), open(lock, "a") as file:
            if time.time() - lock.stat().st_mtime > 60:  # a new one may not be locked yet
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


@dataclass(frozen=True)
class CropSampler:
    """Where the next crop of a photograph lies.

    A share of the crops is centred on a pixel of a class that is drawn among those that the
    photograph shows, the rarer in the whole data set the likelier: a lesion of a hundredth of the
    leaf would else be in few crops (the share is nnU-Net's, Isensee et al. 2021). All others lie
    anywhere.

    Args:
        size: (height, width) of the network's input.
        rare_share: of the crops, in [0, 1].
        scales: the smallest and the largest factor at which a crop shows the photograph.
    """

    size: Size
    rare_share: float
    scales: tuple[float, float] = (1.0, 1.0)

    def draw(self, store: PhotoStore, index: int, rng: np.random.Generator) -> Box:
        """A region of a photograph; resized to `size`, it is the crop."""
        scale = rng.uniform(*self.scales)
        sides = [max(1, round(side / scale)) for side in self.size]
        free = [max(0, all_ - side) for all_, side in zip(store.sizes[index], sides, strict=True)]
        start = rng.integers(0, free, endpoint=True)
        points = store.points[index]
        if points and rng.random() < self.rare_share:
            weights = np.array([1 / store.class_pixels[label] for label in points])
            label = rng.choice(list(points), p=weights / weights.sum())
            centre = points[label][rng.integers(len(points[label]))]
            start = np.clip(centre - np.array(sides) // 2, 0, free)
        return Box(int(start[0]), int(start[1]), *sides)
