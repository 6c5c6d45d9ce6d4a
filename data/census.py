"""What occurs in a mask, counted once: enough to say what it means, and which classes it shows.

Of a mask with more values than any class table has lines, the most frequent are kept; so a census
is small, whatever the mask is.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from config import RGB, ClassTable, Size
from data.classes import table_lines
from data.images import RawMask

# A class table has at most 254 lines: no reading makes sense of a mask with more values than this,
# other than "every value but 0 is the second class".
MOST_VALUES = 1024
# How far (in any channel) JPEG may move a colour that is still surely meant.
JPEG_TOLERANCE = 48


@dataclass(frozen=True)
class Census:
    """What occurs in one mask, as far as it says how masks are meant.

    Args:
        size: (height, width) as displayed.
        values, counts: packed colours (see `pack`) or grey levels, and pixels, int64. Of a JPEG in
            colours they are the nearest colours of the class table.
        grey: whether `values` are grey levels (or palette indices).
        palette: packed colours of the palette indices in `values`, where there is a palette.
        lossy: a JPEG.
        far: pixels of a JPEG in colours that are surely of no class, which are counted as the
            nearest nevertheless.
        far_color: the most frequent colour of these.
    """

    size: Size
    values: np.ndarray
    counts: np.ndarray
    grey: bool
    palette: np.ndarray | None
    lossy: bool
    far: int = 0
    far_color: RGB = (0, 0, 0)

    @classmethod
    def of(cls, raw: RawMask, classes: ClassTable) -> "Census":
        """Count what a mask holds."""
        size = raw.values.shape[:2]
        flat, grey = plane(raw)
        if raw.lossy and not grey:
            return cls._of_colour_jpeg(raw, classes)
        flat = flat.ravel()
        # Masks are made of long runs; counting these is ten times as fast as sorting pixels.
        starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
        lengths = np.diff(np.append(starts, flat.size))
        values, inverse = np.unique(flat[starts], return_inverse=True)
        values = values.astype(np.int64)
        counts = np.bincount(inverse.ravel(), weights=lengths).astype(np.int64)
        if len(values) > MOST_VALUES:
            # 0 and what is below it are kept, however rare: in black and white they say all.
            telling = (values == 0) | (values == values.min())
            kept = np.sort(np.argsort(-(counts + telling * flat.size))[:MOST_VALUES])
            values, counts = values[kept], counts[kept]
        palette = None if raw.palette is None else pack(raw.palette)[values].astype(np.int64)
        return cls(size, values, counts, grey, palette, raw.lossy)

    @classmethod
    def _of_colour_jpeg(cls, raw: RawMask, classes: ClassTable) -> "Census":
        """JPEG makes thousands of colours of a few: what counts is which they were."""
        lines, distance = nearest_lines(raw.values, classes)
        present, counts = np.unique(lines, return_counts=True)
        colors = pack(np.array([*table_lines(classes).values()], np.uint8))
        found = distance > JPEG_TOLERANCE
        far, far_color = int(found.sum()), (0, 0, 0)
        if far:
            packed, times = np.unique(pack(raw.values[found]), return_counts=True)
            far_color = unpack(packed[times.argmax()])
        values = colors[present].astype(np.int64)
        return cls(raw.values.shape[:2], values, counts, False, None, True, far, far_color)

    @property
    def left_out(self) -> int:
        """Pixels whose values are none of the most frequent."""
        return self.size[0] * self.size[1] - int(self.counts.sum())

    def to_plain(self) -> list:
        """A list for JSON."""
        palette = None if self.palette is None else self.palette.tolist()
        numbers = self.values.tolist(), self.counts.tolist(), palette
        return [*self.size, *numbers, self.grey, self.lossy, self.far, *self.far_color]

    @classmethod
    def from_plain(cls, plain: object) -> "Census | None":
        """A census out of a stranger's file; None if it is none."""
        try:
            height, width, values, counts, palette, grey, lossy, far, *color = plain
            numbers = [np.array(row) for row in (values, counts, palette or values)]
            plain_types = (
                all(type(n) is int and 0 <= n < 2**31 for n in (height, width, far, *color))
                and type(grey) is type(lossy) is bool
                and all(row.dtype == np.int64 and row.ndim == 1 for row in numbers)
            )
            values, counts, colors = numbers
            possible = plain_types and (
                len(color) == 3
                and 0 < len(values) == len(counts) == len(colors) <= MOST_VALUES
                and counts.min() > 0
                and counts.sum() <= height * width
            )
        except (TypeError, ValueError, OverflowError):
            return None
        if not possible:
            return None
        palette = None if palette is None else colors
        return cls((height, width), values, counts, grey, palette, lossy, far, tuple(color))


def plane(raw: RawMask) -> tuple[np.ndarray, bool]:
    """A mask as one number a pixel, and whether that is a grey level rather than a colour."""
    values = raw.values
    if values.ndim == 3:
        slack = 8 if raw.lossy else 0  # rounding in JPEG's colour space
        red, green, blue = cv2.split(values)
        spread = max(cv2.absdiff(red, green).max(), cv2.absdiff(green, blue).max())
        return (green, True) if spread <= slack else (pack(values), False)
    if values.dtype == np.uint16 and values.max() > 255 and not (values % 257).any():
        return (values // 257).astype(np.uint8), True  # 8 bits stretched to 16
    if values.dtype.kind == "f":
        rounded = np.nan_to_num(values, nan=-1.0, posinf=-1.0, neginf=-1.0)
        values = np.where(rounded == rounded.round(), rounded, -1).astype(np.int32)
    return values, True


def pack(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 as one number each: red | green << 8 | blue << 16."""
    row = np.ascontiguousarray(colors, np.uint8).reshape(1, -1, 3)
    # A fourth byte makes a pixel a machine word; shifting three arrays is ten times as slow.
    words = cv2.cvtColor(row, cv2.COLOR_RGB2RGBA).view("<u4") & 0xFFFFFF
    return words.reshape(np.shape(colors)[:-1])


def unpack(color: int) -> RGB:
    """The colour that `pack` made one number."""
    color = int(color)
    return color & 0xFF, color >> 8 & 0xFF, color >> 16 & 0xFF


def nearest_lines(values: np.ndarray, classes: ClassTable) -> tuple[np.ndarray, np.ndarray]:
    """The line of the class table whose colour is nearest to each pixel's, and how far that is.

    Args:
        values: (H, W, 3) uint8 RGB.

    Returns:
        both (H, W) uint8; the distance is the largest of the channels' differences.
    """
    lines = np.zeros(values.shape[:2], np.uint8)
    nearest = np.full(values.shape[:2], 255, np.uint8)
    for line, color in table_lines(classes).items():
        distance = np.maximum.reduce(cv2.split(cv2.absdiff(values, (*color, 0))))
        lines[distance < nearest] = line
        np.minimum(nearest, distance, out=nearest)
    return lines, nearest
