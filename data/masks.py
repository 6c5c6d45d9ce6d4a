"""What the values of a mask mean: the one way in which all masks of a data set are read.

Masks come as palette PNGs, indices, colours, grey levels, black and white, in 8 or 16 bits, even as
JPEGs. Which it is cannot be told from one file, so it is decided over all of them, and printed.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError
from common.text import printable
from config import IGNORE_INDEX, ClassTable, Size
from data.classes import read_class_table, table_lines
from data.images import RawMask, map_files, read_header, read_mask_raw, resize_mask, turn
from data.pairs import Pair, check_root, mask_files, split_remark

# A value that no class has; it never leaves this module.
UNKNOWN = 254

# How far (in any channel) JPEG may move a colour that is still surely meant, and the share of the
# pixels, all near edges, that may be further away.
JPEG_TOLERANCE = 48
JPEG_FAR_SHARE = 0.1


@dataclass(frozen=True)
class Census:
    """What occurs in one mask, as far as it says how masks are meant.

    Args:
        values, counts: packed colours (see `_pack`) or grey levels, and pixels.
        grey: whether `values` are grey levels (or palette indices).
        palette: packed colours of the palette indices in `values`, where there is a palette.
        lossy: a JPEG.
    """

    values: np.ndarray
    counts: np.ndarray
    grey: bool
    palette: np.ndarray | None
    lossy: bool

    @classmethod
    def of(cls, raw: RawMask) -> "Census":
        flat, grey = _plane(raw)
        flat = flat.ravel()
        # Masks are made of long runs; counting these is ten times as fast as sorting pixels.
        starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
        lengths = np.diff(np.append(starts, flat.size))
        values, inverse = np.unique(flat[starts], return_inverse=True)
        counts = np.bincount(inverse.ravel(), weights=lengths).astype(np.int64)
        palette = None if raw.palette is None else _pack(raw.palette)[values]
        return cls(values, counts, grey, palette, raw.lossy)


def _plane(raw: RawMask) -> tuple[np.ndarray, bool]:
    """A mask as one number a pixel, and whether that is a grey level rather than a colour."""
    values = raw.values
    if values.ndim == 3:
        slack = 8 if raw.lossy else 0  # rounding in JPEG's colour space
        red, green, blue = cv2.split(values)
        spread = max(cv2.absdiff(red, green).max(), cv2.absdiff(green, blue).max())
        return (green, True) if spread <= slack else (_pack(values), False)
    if values.dtype == np.uint16 and values.max() > 255 and not (values % 257).any():
        return (values // 257).astype(np.uint8), True  # 8 bits stretched to 16
    if values.dtype.kind == "f":
        rounded = np.nan_to_num(values, nan=-1.0, posinf=-1.0, neginf=-1.0)
        values = np.where(rounded == rounded.round(), rounded, -1).astype(np.int32)
    return values, True


def _pack(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 as one number each: red | green << 8 | blue << 16."""
    row = np.ascontiguousarray(colors, np.uint8).reshape(1, -1, 3)
    # A fourth byte makes a pixel a machine word; shifting three arrays is ten times as slow.
    words = cv2.cvtColor(row, cv2.COLOR_RGB2RGBA).view("<u4") & 0xFFFFFF
    return words.reshape(np.shape(colors)[:-1])


@dataclass(frozen=True)
class MaskReader:
    """Reads every mask of a data set in the one way that was decided over all of them.

    Args:
        classes: the class table.
        grey: what grey levels mean: "colours" of the table, "indices" of its lines, or
            "binary", where any value but 0 is the second class.
        palette: what palette PNGs mean: "colours", or their indices, read as grey levels.
        jpeg: what grey JPEGs mean: "colours", the nearest one, or "binary".
        threshold: from which level on a binary JPEG shows the second class.
        remarks: what else the user should know, for `describe`.
    """

    classes: ClassTable
    grey: str = "colours"
    palette: str = "colours"
    jpeg: str = "colours"
    threshold: int = 128
    remarks: tuple[str, ...] = ()

    @classmethod
    def for_data(cls, root: Path) -> "MaskReader":
        """Decide how the masks of a data set are read, over all splits that exist.

        Files that cannot be read take no part; `check_pairs` finds them.

        Raises:
            UserError: no such folder, no masks, a bad class table, or no way to read the masks.
        """
        root = Path(root)
        check_root(root)
        classes = read_class_table(root)
        masks = mask_files(root)
        if not masks:
            raise UserError(
                f"{printable(root)} holds no masks; it needs train_images, train_masks, "
                "valid_images and valid_masks, or a CVAT export."
            )
        return cls.for_masks(classes, masks, split_remark(root))

    @classmethod
    def for_masks(
        cls, classes: ClassTable, masks: list[Path], remarks: tuple[str, ...] = ()
    ) -> "MaskReader":
        """Decide how some mask pictures are read; raises as `for_data`."""
        taken = map_files(take_census, masks, "Reading masks")
        found = [census for census in taken if isinstance(census, Census)]
        if not found:
            raise next(error for error in taken if isinstance(error, UserError))
        return cls.decide(classes, found, remarks)

    @classmethod
    def decide(cls, classes: ClassTable, found: list[Census], remarks: tuple = ()) -> "MaskReader":
        """Choose the reading under which all masks make sense; where none does, most of them.

        A mask that does not fit is then refused by name when it is read.
        """
        palette = _decide_palette(classes, [c for c in found if c.palette is not None])
        levels = [c for c in found if not c.lossy and (c.palette is None or palette == "indices")]
        grey = _decide_grey(classes, levels)
        jpegs = [c for c in found if c.lossy and c.grey]
        jpeg, threshold = "colours", 128
        if jpegs and len(classes) == 2 and not all(len(set(rgb)) == 1 for rgb in classes.colors):
            jpeg, threshold = "binary", _half_of_brightest(jpegs)
        if any(c.lossy for c in found):
            above = f"from level {threshold} on {classes.names[1]!r}"
            remarks = (*remarks, f"JPEGs: {above if jpeg == 'binary' else 'the nearest colour'}")
        if grey != "binary" and any(_shows_white(c) for c in levels) and not _has_white(classes):
            remarks = (*remarks, "255 (white) is ignored")
        return cls(classes, grey, palette, jpeg, threshold, remarks)

    def describe(self) -> str:
        """One line: the classes and how masks are read."""
        names = ", ".join(self.classes.names)
        ways = {
            "colours": "each value is a colour of the class table",
            "indices": "each value is a line of the class table, from 0",
            "binary": f"every value but 0 is {self.classes.names[1]!r}",
        }
        notes = "".join(f"; {remark}" for remark in self.remarks)
        return f"{len(self.classes)} classes: {names}. Masks: {ways[self.grey]}{notes}."

    def read(self, pair: Pair, size: Size | None = None) -> np.ndarray:
        """The classes of a pair's mask, (H, W) uint8, 255 = ignore, turned as the photograph is.

        Args:
            size: (height, width) to resize to, by nearest neighbour; None keeps the mask's own.

        Raises:
            UserError: the mask cannot be read, has unknown values, or does not fit its photograph.
        """
        labels = self.align(self.decode(read_mask_raw(pair.mask), pair.mask), pair)
        return labels if size is None else resize_mask(labels, size)

    def align(self, labels: np.ndarray, pair: Pair) -> np.ndarray:
        """Turn a mask (H, W) as its photograph is displayed.

        Raises:
            UserError: their proportions differ by more than 1 %.
        """
        header = read_header(pair.image)
        if labels.shape == header.stored_size != header.size:
            # Painted over the photograph as stored, by a program that does not know EXIF.
            labels = turn(labels, header.orientation)
        (height, width), (h, w) = header.size, labels.shape
        # One pixel of rounding is no difference, however small the mask.
        if abs(h * width - w * height) > max(0.01 * w * height, width, height):
            raise UserError(
                f"{printable(pair.mask)} has {w}x{h} px, its image {printable(pair.image.name)} "
                f"{width}x{height}; give the mask the image's size."
            )
        return labels

    def decode(self, raw: RawMask, path: Path) -> np.ndarray:
        """The classes of a mask's values, (H, W) uint8, 255 = ignore.

        Raises:
            UserError: a value means nothing; names the most frequent one.
        """
        if raw.lossy:
            return self._decode_jpeg(raw, path)
        if raw.palette is not None and self.palette == "colours":
            table = self._color_table[_pack(raw.palette)]
            if table[255] == UNKNOWN:
                table[255] = IGNORE_INDEX
            labels = table[raw.values]
        else:
            plane, grey = _plane(raw)
            if not grey:
                labels = self._color_table[plane]
            else:
                levels = self._level_table
                labels = levels[np.clip(plane, 0, 256)]  # 256 stands for all that is larger
                if plane.dtype.kind == "i" and plane.min() < 0:
                    labels[plane < 0] = UNKNOWN
        if (labels == UNKNOWN).any():
            raise UserError(self._explain_unknown(raw, labels, path))
        return labels

    def _decode_jpeg(self, raw: RawMask, path: Path) -> np.ndarray:
        """The nearest class of each pixel: around edges, JPEG makes colours that nobody painted."""
        plane, grey = _plane(raw)
        if grey and self.jpeg == "binary":
            return (plane >= self.threshold).astype(np.uint8)
        values = raw.values if raw.values.ndim == 3 else np.repeat(raw.values[..., None], 3, axis=2)
        labels = np.zeros(values.shape[:2], np.uint8)
        nearest = np.full(values.shape[:2], 255, np.uint8)
        for line, color in table_lines(self.classes).items():
            distance = np.maximum.reduce(cv2.split(cv2.absdiff(values, (*color, 0))))
            labels[distance < nearest] = self._target(line)
            np.minimum(nearest, distance, out=nearest)
        far = nearest > JPEG_TOLERANCE
        if far.mean() > JPEG_FAR_SHARE:
            color, _ = Counter(map(tuple, values[far].tolist())).most_common(1)[0]
            raise UserError(
                f"{printable(path)} is a JPEG mask with colours far from every class, such as "
                f"{color}; save it as PNG, or correct labelmap.txt."
            )
        return labels

    def _target(self, line: int) -> int:
        """The class index of a line of the table, 255 for one that is no class."""
        ignored = [number for number, _ in self.classes.ignored]
        return IGNORE_INDEX if line in ignored else line - sum(n < line for n in ignored)

    @cached_property
    def _color_table(self) -> np.ndarray:
        """Class index of every packed colour, (2**24,) uint8: one look-up a pixel."""
        table = np.full(1 << 24, UNKNOWN, np.uint8)
        table[0xFFFFFF] = IGNORE_INDEX
        for line, color in table_lines(self.classes).items():
            table[_pack(np.array(color))] = self._target(line)
        return table

    @cached_property
    def _level_table(self) -> np.ndarray:
        """Class index of every grey level, (257,) uint8, the last for all larger numbers."""
        table = np.full(257, UNKNOWN, np.uint8)
        if self.grey == "binary":
            table[:] = 1
            table[0] = 0
            return table
        lines = table_lines(self.classes)
        if not _has_white(self.classes):
            table[255] = IGNORE_INDEX
        for line, color in lines.items():
            if self.grey == "indices":
                table[line] = self._target(line)
            elif len(set(color)) == 1:
                table[color[0]] = self._target(line)
        return table

    def _explain_unknown(self, raw: RawMask, labels: np.ndarray, path: Path) -> str:
        """The most frequent value that means nothing, and what it may have been meant to be."""
        remedy = "Fix the mask or add the class to labelmap.txt."
        plane, grey = _plane(raw)
        if raw.palette is not None and self.palette == "colours":
            values = raw.palette[raw.values[labels == UNKNOWN]]
        elif grey and self.grey == "indices":
            level, count = Counter(plane[labels == UNKNOWN].tolist()).most_common(1)[0]
            last = len(table_lines(self.classes)) - 1
            return (
                f"{printable(path)} has the value {level} on {count} pixels; the class table has "
                f"the lines 0 to {last}, the nearest is "
                f"{self._name_of(min(max(level, 0), last))!r}. {remedy}"
            )
        elif grey:
            values = np.repeat(plane[labels == UNKNOWN][:, None], 3, axis=1)
        else:
            values = raw.values[labels == UNKNOWN]
        color, count = Counter(map(tuple, values.tolist())).most_common(1)[0]
        lines = table_lines(self.classes)
        near = min(lines, key=lambda line: math.dist(color, lines[line]))
        return (
            f"{printable(path)} has the colour {color} on {count} pixels; the nearest class is "
            f"{self._name_of(near)!r} {lines[near]}. {remedy}"
        )

    def _name_of(self, line: int) -> str:
        """The class of a line of the table."""
        target = self._target(line)
        return "ignored" if target == IGNORE_INDEX else self.classes.names[target]


def _has_white(classes: ClassTable) -> bool:
    """Whether a class is white; only if none is, 255 means "ignore"."""
    return (255, 255, 255) in classes.colors


def _shows_white(census: Census) -> bool:
    return not census.lossy and bool(np.isin(census.values, 255 if census.grey else 0xFFFFFF).any())


def _decide_palette(classes: ClassTable, found: list[Census]) -> str:
    """Whether the colours of palette masks are those of the table, in most that show any class."""
    known = _pack(np.array([*table_lines(classes).values()]))
    fits = []
    for census in found:
        # Index 255 is the border of Pascal VOC, whatever its colour.
        shown = np.isin(census.values, (0, 255), invert=True)
        if shown.any():
            fits.append(bool(np.isin(census.palette[census.values != 255], known).all()))
    return "colours" if 2 * sum(fits) >= len(fits) else "indices"


def _decide_grey(classes: ClassTable, found: list[Census]) -> str:
    """The first reading under which all masks make sense, or else the one under which most do."""
    lines = table_lines(classes)
    known = _pack(np.array([*lines.values(), (255, 255, 255)]))
    greys = [color[0] for color in lines.values() if len(set(color)) == 1]
    indices = [*lines] if _has_white(classes) else [*lines, 255]
    shown = set().union(*(census.values.tolist() for census in found if census.grey))
    if len(classes) == 2 and shown == {0, 255}:
        indices = [0]  # nothing but background and ignored: it is black and white
    fits = {
        "colours": [bool(np.isin(c.values, greys if c.grey else known).all()) for c in found],
        "indices": [c.grey and bool(np.isin(c.values, indices).all()) for c in found],
    }
    if len(classes) == 2:
        # Of masks that tell more than black and white, most must fit the table, or it is not meant.
        plain = (0,) if _has_white(classes) else (0, 255)
        telling = [not bool(np.isin(c.values, plain).all()) for c in found]
        most = max(sum(f and t for f, t in zip(ok, telling, strict=True)) for ok in fits.values())
        if 2 * most <= sum(telling):
            fits["binary"] = [c.grey for c in found]
    return max(fits, key=lambda kind: sum(fits[kind]))  # of equals the first


def _half_of_brightest(found: list[Census]) -> int:
    """Half of the most frequent level that is not dark, which is where two flat levels part."""
    counts: Counter = Counter()
    for census in found:
        for value, count in zip(census.values.tolist(), census.counts.tolist(), strict=True):
            counts[value] += count
    bright = {value: count for value, count in counts.items() if value > 20}
    return max(bright, key=bright.get) // 2 if bright else 128


def take_census(path: Path) -> Census | UserError:
    """What occurs in a mask, or why that cannot be said."""
    try:
        return Census.of(read_mask_raw(path))
    except UserError as error:
        return error
