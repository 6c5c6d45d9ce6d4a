"""What the values of a mask mean: the one way in which all masks of a data set are read.

Masks come as palette PNGs, indices, colours, grey levels, black and white, in 8 or 16 bits, even as
JPEGs. Which it is cannot be told from one file. It is decided over the training split alone, so
that no other split changes what is learnt, and travels with the model; masks of other splits must
agree.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.text import counted, printable
from config import IGNORE_INDEX, RGB, ClassTable, MaskReading, Size
from data.census import JPEG_TOLERANCE, Census, nearest_lines, pack, plane, unpack
from data.classes import line_targets, table_lines
from data.decoding import Header, turn
from data.images import RawMask, read_header, read_mask_raw, resize_mask
from data.pairs import Pair

# A value that no class has; it never leaves this module.
UNKNOWN = 254

# The share of a JPEG's pixels, all near edges, that may be further from every class than
# JPEG_TOLERANCE.
JPEG_FAR_SHARE = 0.1


@dataclass(frozen=True)
class MaskReader:
    """Reads every mask of a data set in the one way that was decided over the training's.

    Args:
        classes: the class table.
        reading: what was decided, as it travels with a model.
        remarks: what else the user should know, for `describe`.
        known: what was learnt of mask files, by path, so that they need not be decoded again.
    """

    classes: ClassTable
    reading: MaskReading = field(default_factory=MaskReading)
    remarks: tuple[str, ...] = ()
    known: Mapping[Path, Census] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def decide(cls, classes: ClassTable, found: list[Census], remarks: tuple = ()) -> "MaskReader":
        """Choose the reading under which all masks make sense; where none does, most of them.

        A mask that does not fit is then refused by name when it is read.
        """
        palette = _decide_palette(classes, [c for c in found if c.palette is not None])
        levels = [c for c in found if not c.lossy and (c.palette is None or palette == "indices")]
        grey = _decide_grey(classes, levels)
        in_grey = all(len(set(rgb)) == 1 for rgb in classes.colors)
        jpeg = "binary" if len(classes) == 2 and not in_grey else "colours"
        level = _brightest([c for c in found if c.lossy and c.grey])
        threshold = 128 if level is None else level // 2
        if any(c.lossy for c in found):
            above = f"from level {threshold} on {classes.names[1]!r}"
            remarks = (*remarks, f"JPEGs: {above if jpeg == 'binary' else 'the nearest colour'}")
        white = _each(levels, lambda c: np.isin(c.values, 255 if c.grey else 0xFFFFFF).any())
        if grey != "binary" and any(white) and not _has_white(classes):
            remarks = (*remarks, "255 (white) is ignored")
        return cls(classes, MaskReading(grey, palette, jpeg, threshold), remarks)

    def describe(self, painted: bool = False) -> str:
        """A line for the classes, one for how masks are read, and one for each remark.

        Args:
            painted: they were painted here, of annotations; there is nothing to say on the masks.
        """
        lines = [f"{len(self.classes)} classes: {', '.join(self.classes.names)}"]
        if not painted:
            lines.append(f"masks: {self._way(self.reading.grey)}")
        return "\n  ".join([*lines, *self.remarks])

    def _way(self, way: str) -> str:
        return {
            "colours": "each value is a colour of the class table",
            "indices": "each value is a line of the class table, from 0",
            "binary": f"every value but 0 is {self.classes.names[1]!r}",
        }[way]

    def _way_of(self, census: Census) -> str:
        """How a mask is read, in words."""
        if census.lossy:
            return f"levels from {self.reading.threshold} on are {self.classes.names[1]!r}"
        if census.palette is not None and self.reading.palette == "colours":
            return "each palette colour is one of the class table"
        return self._way(self.reading.grey)

    def refuse_other_reading(self, found: Mapping[Path, Census], decided_by: str) -> None:
        """Refuse masks that, looked at by themselves, mean other classes than this reader sees.

        Masks of which even their own reading makes no sense are left to `problem`, one by one.

        Args:
            found: the masks of a split.
            decided_by: where this reader's way comes from, such as "the training masks".

        Raises:
            UserError: names the first mask, a value of it, and both meanings.
        """
        own = MaskReader.decide(self.classes, list(found.values()))
        if own.reading == self.reading:
            return
        if any((own.labels_of(census) == UNKNOWN).any() for census in found.values()):
            return
        # White alone may be a class or what is ignored: that is no contradiction.
        telling = any(not np.isin(c.values, (0, 255, 0xFFFFFF)).all() for c in found.values())
        for path, census in found.items():
            mine, theirs = self.labels_of(census), own.labels_of(census)
            differ = (mine != theirs) & (telling | (theirs != IGNORE_INDEX))
            if census.lossy:  # JPEG's noise may lie on both sides of a threshold
                differ &= census.values == _brightest([census])
            if differ.any():
                value = int(census.values[differ][0])
                shown = value if census.grey else unpack(value)
                one, other = (self._meaning(int(labels[differ][0])) for labels in (theirs, mine))
                raise UserError(
                    f"{printable(path)} and the masks beside it look as if "
                    f"{own._way_of(census)} ({shown} is {one}), but in {decided_by} "
                    f"{self._way_of(census)} ({shown} is {other}); save all masks in the same way."
                )

    def _meaning(self, label: int) -> str:
        """A class's name in quotes, or what else a value may be."""
        return {UNKNOWN: "no class", IGNORE_INDEX: "ignored"}.get(label) or repr(
            self.classes.names[label]
        )

    def read(
        self, pair: Pair, size: Size | None = None, header: Header | None = None
    ) -> np.ndarray:
        """The classes of a pair's mask, (H, W) uint8, 255 = ignore, turned as the photograph is.

        Args:
            size: (height, width) to resize to, by nearest neighbour; None keeps the mask's own.
            header: the photograph's, where it is known.

        Raises:
            UserError: the mask cannot be read, has unknown values, or does not fit its photograph.
        """
        labels = self.decode(read_mask_raw(pair.mask), pair.mask)
        header = header or read_header(pair.image)
        if is_turned(labels.shape, header, pair):
            labels = turn(labels, header.orientation)
        return labels if size is None else resize_mask(labels, size)

    def decode(self, raw: RawMask, path: Path) -> np.ndarray:
        """The classes of a mask's values, (H, W) uint8, 255 = ignore.

        Raises:
            UserError: a value means nothing; names the most frequent one.
        """
        values, grey = plane(raw)
        if raw.lossy and not (grey and self.reading.jpeg == "binary"):
            rgb = np.dstack([values] * 3) if grey else raw.values
            lines, distance = nearest_lines(rgb, self.classes)
            if (distance > JPEG_TOLERANCE).mean() > JPEG_FAR_SHARE:
                raise UserError(self.problem(Census.of(raw, self.classes), path))
            return self._targets[lines]
        if raw.lossy:
            return (values >= self.reading.threshold).astype(np.uint8)
        if raw.palette is not None and self.reading.palette == "colours":
            table = self._color_table[pack(raw.palette)]
            if table[255] == UNKNOWN:
                table[255] = IGNORE_INDEX
            labels = table[raw.values]
        elif not grey:
            labels = self._color_table[values]
        else:
            labels = self._level_table[np.clip(values, 0, 256)]  # 256 stands for all that is larger
            if values.dtype.kind == "i" and values.min() < 0:
                labels[values < 0] = UNKNOWN
        if (labels == UNKNOWN).any():
            raise UserError(self.problem(Census.of(raw, self.classes), path))
        return labels

    def labels_of(self, census: Census) -> np.ndarray:
        """What `decode` makes of each of a census's values, UNKNOWN where it means nothing."""
        values = census.values
        if census.lossy and census.grey:
            if self.reading.jpeg == "binary":
                return (values >= self.reading.threshold).astype(np.uint8)
            levels = np.repeat(values.astype(np.uint8)[None, :, None], 3, axis=2)
            return self._targets[nearest_lines(levels, self.classes)[0][0]]
        if census.palette is not None and self.reading.palette == "colours":
            labels = self._of_colours(census.palette)
            labels[(labels == UNKNOWN) & (values == 255)] = IGNORE_INDEX
            return labels
        if not census.grey:
            return self._of_colours(values)
        labels = self._level_table[np.clip(values, 0, 256)]
        labels[values < 0] = UNKNOWN
        return labels

    def pixels_of(self, census: Census) -> np.ndarray:
        """Pixels of each class in a mask, (256,) int64, the last one those that are ignored."""
        labels = self.labels_of(census)
        pixels = np.bincount(labels, census.counts, minlength=256).astype(np.int64)
        pixels[self._level_table[256]] += census.left_out
        return pixels

    def class_pixels(self, pair: Pair) -> np.ndarray:
        """Pixels of each class in a pair's mask at its own size, (K,) int64."""
        census = self.known.get(pair.mask)
        if census is None:
            census = Census.of(read_mask_raw(pair.mask), self.classes)
        return self.pixels_of(census)[: len(self.classes)]

    def problem(self, census: Census, path: Path) -> str | None:
        """Why a mask cannot be used, from what occurs in it; names the most frequent value."""
        labels = self.labels_of(census)
        if census.lossy:
            far, color = census.far, census.far_color
            if census.grey and self.reading.jpeg == "colours":
                levels = np.repeat(census.values.astype(np.uint8)[None, :, None], 3, axis=2)
                off = nearest_lines(levels, self.classes)[1][0] > JPEG_TOLERANCE
                counts = census.counts * off
                far, color = int(counts.sum()), (int(census.values[counts.argmax()]),) * 3
            if far <= JPEG_FAR_SHARE * math.prod(census.size):
                return None
            return (
                f"{printable(path)} is a JPEG mask with colours far from every class, such as "
                f"{color}; save it as PNG, or correct labelmap.txt."
            )
        unknown = labels == UNKNOWN
        return self._explain_unknown(census, unknown, path) if unknown.any() else None

    def _of_colours(self, packed: np.ndarray) -> np.ndarray:
        """Class index of some packed colours, uint8."""
        known = self._known_colors
        return np.array([known.get(value, UNKNOWN) for value in packed.tolist()], np.uint8)

    @cached_property
    def _targets(self) -> np.ndarray:
        """Class index of every line of the table, uint8, 255 for one that is no class."""
        return np.array([*line_targets(self.classes).values()], np.uint8)

    @cached_property
    def _known_colors(self) -> dict[int, int]:
        """Class index of the table's packed colours; white is ignored where no line has it."""
        colors = (int(pack(np.array(color))) for color in table_lines(self.classes).values())
        return {0xFFFFFF: IGNORE_INDEX} | dict(zip(colors, self._targets.tolist(), strict=True))

    @cached_property
    def _color_table(self) -> np.ndarray:
        """Class index of every packed colour, (2**24,) uint8: one look-up a pixel."""
        table = np.full(1 << 24, UNKNOWN, np.uint8)
        table[[*self._known_colors]] = [*self._known_colors.values()]
        return table

    @cached_property
    def _level_table(self) -> np.ndarray:
        """Class index of every grey level, (257,) uint8, the last for all larger numbers."""
        table = np.full(257, UNKNOWN, np.uint8)
        if self.reading.grey == "binary":
            table[:] = 1
            table[0] = 0
            return table
        if not _has_white(self.classes):
            table[255] = IGNORE_INDEX
        for line, color in table_lines(self.classes).items():
            if self.reading.grey == "indices":
                table[line] = self._targets[line]
            elif len(set(color)) == 1:
                table[color[0]] = self._targets[line]
        return table

    def _explain_unknown(self, census: Census, unknown: np.ndarray, path: Path) -> str:
        """The most frequent value that means nothing, and what it may have been meant to be."""
        remedy = "Fix the mask or add the class to labelmap.txt."
        lines, values = table_lines(self.classes), census.values
        as_colors = census.palette is not None and self.reading.palette == "colours"
        if as_colors:
            values = census.palette
        times: Counter = Counter()
        for value, count in zip(values[unknown].tolist(), census.counts[unknown], strict=True):
            times[value] += int(count)
        value, count = times.most_common(1)[0]
        many = counted(count, "pixel|pixels")
        if census.grey and not as_colors and self.reading.grey == "indices":
            last = len(lines) - 1
            return (
                f"{printable(path)} has the value {value} on {many}; the class table has "
                f"the lines 0 to {last}, the nearest is "
                f"{self._name_of(min(max(value, 0), last))!r}. {remedy}"
            )
        color: RGB = (value,) * 3 if census.grey and not as_colors else unpack(value)
        near = min(lines, key=lambda line: math.dist(color, lines[line]))
        return (
            f"{printable(path)} has the colour {color} on {many}; the nearest class is "
            f"{self._name_of(near)!r} {lines[near]}. {remedy}"
        )

    def _name_of(self, line: int) -> str:
        """The class of a line of the table."""
        target = self._targets[line]
        return "ignored" if target == IGNORE_INDEX else self.classes.names[target]


def _has_white(classes: ClassTable) -> bool:
    """Whether a class is white; only if none is, 255 means "ignore"."""
    return (255, 255, 255) in classes.colors


def _decide_palette(classes: ClassTable, found: list[Census]) -> str:
    """Whether the colours of palette masks are those of the table, in most that show any class."""
    known = pack(np.array([*table_lines(classes).values()]))

    def fits(census: Census) -> bool | None:
        # Index 255 is the border of Pascal VOC, whatever its colour.
        if np.isin(census.values, (0, 255)).all():
            return None
        return bool(np.isin(census.palette[census.values != 255], known).all())

    votes = [vote for vote in _each(found, fits) if vote is not None]
    return "colours" if 2 * sum(votes) >= len(votes) else "indices"


def _decide_grey(classes: ClassTable, found: list[Census]) -> str:
    """The first reading under which all masks make sense, or else the one under which most do."""
    lines = table_lines(classes)
    known = pack(np.array([*lines.values(), (255, 255, 255)]))
    greys = [color[0] for color in lines.values() if len(set(color)) == 1]
    indices = [*lines] if _has_white(classes) else [*lines, 255]
    shown = set().union(*(census.values.tolist() for census in found if census.grey))
    if len(classes) == 2 and shown == {0, 255}:
        indices = [0]  # nothing but background and ignored: it is black and white
    fits = {
        "colours": _each(found, lambda c: np.isin(c.values, greys if c.grey else known).all()),
        "indices": _each(found, lambda c: c.grey and np.isin(c.values, indices).all()),
    }
    if len(classes) == 2:
        # Of masks that tell more than black and white, most must fit the table, or it is not meant.
        plain = (0,) if _has_white(classes) else (0, 255)
        telling = _each(found, lambda c: not np.isin(c.values, plain).all())
        most = max(sum(f and t for f, t in zip(ok, telling, strict=True)) for ok in fits.values())
        if 2 * most <= sum(telling):
            fits["binary"] = [c.grey for c in found]
    return max(fits, key=lambda kind: sum(fits[kind]))  # of equals the first


def _each(found: list[Census], answer: Callable[[Census], bool | None]) -> list[bool | None]:
    """What is answered of each mask, asked once for all that show the same values."""
    answers: dict[tuple, bool | None] = {}
    result = []
    for census in found:
        palette = None if census.palette is None else census.palette.tobytes()
        key = census.values.tobytes(), palette, census.grey, census.lossy
        if key not in answers:
            value = answer(census)
            answers[key] = None if value is None else bool(value)
        result.append(answers[key])
    return result


def _brightest(found: list[Census]) -> int | None:
    """The most frequent level that is not dark; half of it is where two flat levels part."""
    counts: Counter = Counter()
    for census in found:
        for value, count in zip(census.values.tolist(), census.counts.tolist(), strict=True):
            counts[value] += count
    bright = {value: count for value, count in counts.items() if value > 20}
    return max(bright, key=bright.get) if bright else None


def is_turned(size: Size, header: Header, pair: Pair) -> bool:
    """Whether a mask of this size was painted over its photograph as stored, before EXIF's turn.

    Raises:
        UserError: their proportions differ by more than 1 %.
    """
    turned = tuple(size) == header.stored_size != header.size
    (height, width), (h, w) = header.size, header.size if turned else size
    # One pixel of rounding is no difference, however small the mask.
    if abs(h * width - w * height) > max(0.01 * w * height, width, height):
        raise UserError(
            f"{pair.mask_name} has {w}x{h} px, its image {printable(pair.image.name)} "
            f"{width}x{height}; give the mask the image's size."
        )
    return turned
