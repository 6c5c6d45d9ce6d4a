"""From shapes to masks of class indices, painted once and kept in the cache.

A mask's file is named after all that it depends on (the shapes, the classes' order, the rule of
overlaps), so what lies in the cache is right or not there.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.text import counted, printable
from config import IGNORE_INDEX, RGB, ClassTable, Size
from data.classes import (
    IGNORED_NAMES,
    MAX_CLASSES,
    WHITE,
    free_color,
    read_class_table,
    visible_colors,
)
from data.decoding import MAX_PIXELS
from data.formats.records import Annotations, Picture, Shape, annotation
from data.formats.regions import Region
from data.images import map_files, read_header, write_mask
from data.pairs import Pair

# Raised when the same shapes come to be painted otherwise.
VERSION = 1
BACKGROUND = ("background", "_background_", "__background__")
IGNORED = IGNORED_NAMES | {"__ignore__", "_ignore_"}
PNG_END = b"IEND\xaeB`\x82"


def class_table(found: Annotations, root: Path) -> ClassTable:
    """The classes of annotations, the background first; a labelmap.txt in `root` overrides all.

    Raises:
        UserError: no classes or too many, or labelmap.txt lacks one.
    """
    home = root.parent if root.is_file() else root
    names = [name for name in found.names if not _is_ignored(name) and not _is_background(name)]
    if (home / "labelmap.txt").is_file():
        table = read_class_table(home)
        missing = [name for name in names if name not in table.names]
        missing = [name for name in missing if name.casefold() not in IGNORED_NAMES]
        if missing:
            raise UserError(
                f"{printable(home / 'labelmap.txt')} lacks the class {missing[0]!r}, which "
                f"{found.format} has; add it, or remove the file."
            )
        return replace(table, ignored=())
    if not names or len(names) >= MAX_CLASSES:
        many = counted(len(names), "class|classes")
        raise UserError(
            f"{printable(root)} has {many} with areas in {found.format}; 1 to "
            f"{MAX_CLASSES - 1} are needed."
        )
    odd = next((name for name in names if printable(name) != name), None)
    if odd is not None:
        raise UserError(
            f"{printable(root)} has control characters in the class {printable(odd)!r}; rename it."
        )
    taken: list[RGB] = [(0, 0, 0)]
    for number, name in enumerate(names, start=1):
        color = found.colors.get(name)
        taken.append(color if color and color not in (*taken, WHITE) else free_color(number, taken))
    background = next((name for name in found.names if _is_background(name)), BACKGROUND[0])
    return ClassTable((background, *names), tuple(taken), visible_colors(taken))


def _is_background(name: str) -> bool:
    return name.casefold() in BACKGROUND


def _is_ignored(name: str) -> bool:
    return name.casefold() in IGNORED


def index_of(label: str, classes: ClassTable) -> int:
    """The value that a shape's class has in a mask."""
    if label in classes.names:
        return classes.names.index(label)
    return 0 if _is_background(label) else IGNORE_INDEX


def paint_order(shapes: list[Shape], by_area: bool) -> list[Shape]:
    """Shapes from the lowest to the one on top: as listed, or the smaller above the larger."""
    return sorted(shapes, key=lambda shape: -shape.region.area) if by_area else shapes


def paint(shapes: list[Shape], boxes: list[Region], size: Size, classes: ClassTable) -> np.ndarray:
    """The mask (H, W) uint8 of shapes in painting order; 255 where a shape means "ignore".

    Args:
        boxes: which hold something, nobody knows which pixels: 255 where no shape covers them.

    Raises:
        UserError: a shape that cannot be painted.
    """
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        top, left, patch = box.draw(size)
        mask[top : top + patch.shape[0], left : left + patch.shape[1]][patch] = IGNORE_INDEX
    for shape in shapes:
        with annotation(shape.where):
            top, left, patch = shape.region.draw(size)
        window = mask[top : top + patch.shape[0], left : left + patch.shape[1]]
        window[patch] = index_of(shape.label, classes)
    return mask


def painted_pairs(
    found: Annotations, pictures: list[Picture], classes: ClassTable, by_area: bool, folder: Path
) -> list[Pair]:
    """Each picture with its mask, painted where it is not in `folder` yet, sorted by path.

    A picture whose shapes cannot be painted is added to `found.problems` and left out.
    """

    def make(picture: Picture) -> Pair | UserError:
        try:
            return _pair(picture, classes, by_area, folder)
        except UserError as error:
            return error

    pairs = []
    for picture, made in zip(pictures, map_files(make, pictures, "Painting masks"), strict=True):
        if isinstance(made, Pair):
            pairs.append(made)
        else:
            found.add_problem(picture.file, picture.name, made)
    beyond = sum(
        shape.region.beyond(picture.size)
        for picture in pictures
        if picture.size
        for shape in picture.shapes
    )
    found.counts["shape|shapes that reaches|reach beyond the picture (clipped)"] += beyond
    return sorted(pairs, key=lambda pair: pair.image)


def _pair(picture: Picture, classes: ClassTable, by_area: bool, folder: Path) -> Pair:
    shapes = paint_order(picture.shapes, by_area)
    try:
        photo = os.stat(picture.path).st_size
    except OSError as error:
        raise UserError(f"the photograph cannot be read ({error.strerror})") from error
    mark = hashlib.blake2b(digest_size=16)
    mark.update(repr((VERSION, picture.size, photo, classes.to_plain())).encode())
    for shape in shapes:
        mark.update(repr(shape.label).encode() + shape.region.digest())
    for box in picture.boxes:
        mark.update(b"box" + box.digest())
    stem = picture.path.stem.encode(errors="backslashreplace")[:100].decode(errors="ignore")
    path = folder / f"{stem}-{mark.hexdigest()}.png"
    if not _is_whole(path):
        size = _checked_size(picture)
        write_mask(path, paint(shapes, picture.boxes, size, classes), classes.colors)
    return Pair(picture.path, path, picture.path.stem, picture.file)


def _checked_size(picture: Picture) -> Size:
    """The size to paint in: what the file says, if it has the photograph's proportions.

    Shapes drawn over a photograph as it is stored, before EXIF turns it, are painted so; whoever
    reads the mask turns it.

    Raises:
        UserError: the photograph has other proportions than its annotations.
    """
    header = read_header(picture.path)
    if picture.size is None:
        return header.size
    (h, w), turned = picture.size, picture.size == header.stored_size
    if h * w > MAX_PIXELS:
        raise UserError(f"the annotations are of a picture of {w}x{h} px, which none has.")
    height, width = header.size
    if not turned and abs(h * width - w * height) > max(0.01 * w * height, width, height):
        raise UserError(
            f"the annotations are of a picture of {w}x{h} px, and the photograph has "
            f"{width}x{height}; put the right one there."
        )
    return picture.size


def _is_whole(path: Path) -> bool:
    """Whether a mask is in the cache to its last byte."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False
