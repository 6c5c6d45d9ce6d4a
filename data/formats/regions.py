"""Shapes that a person drew, as the pixels that they cover.

One rule for all outlines, that of COCO's and CVAT's own tools: corners are rounded to a fifth of a
pixel, a pixel belongs to a shape when its centre lies inside, and a shape that crosses itself is
hollow where it covers a place twice (even-odd). Coordinates are those of the picture's corners, x
to the right and y downwards: the first pixel's centre is (0.5, 0.5). The rasters of LabelMe and
OpenCV differ from it by adding the pixels that the outline itself runs through.
"""

import hashlib
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.errors import UserError
from config import Size
from data.decoding import MAX_PIXELS

# What no person draws, and what would take minutes to paint.
MAX_POINTS = 200_000
MAX_CROSSINGS = 100_000_000
# Coordinates beyond are no slip of the hand but damage; numbers stay exact up to here.
FARTHEST = 1e6

FIFTHS = 5  # the grid, in parts of a pixel, that corners are rounded to

Patch = tuple[int, int, np.ndarray]  # top, left, and the pixels (h, w) bool from there on


@dataclass(frozen=True)
class Outline:
    """One or more closed lines: the union of what each of them encloses.

    Args:
        rings: (N, 2) float64 of x, y in pixels, N at least 3.
    """

    rings: tuple[np.ndarray, ...]

    @property
    def area(self) -> float:
        """Pixels enclosed, parts that overlap counted twice: enough to tell large from small."""
        return float(sum(abs(signed_area(ring)) for ring in self.rings))

    def digest(self) -> bytes:
        """Bytes that differ where two regions differ."""
        mark = hashlib.blake2b(b"outline", digest_size=16)
        for ring in self.rings:
            mark.update(len(ring).to_bytes(8) + ring.tobytes())
        return mark.digest()

    def beyond(self, size: Size) -> bool:
        """Whether it reaches more than a pixel beyond a picture of (height, width)."""
        low, high = (
            np.min([r.min(0) for r in self.rings], 0),
            np.max([r.max(0) for r in self.rings], 0),
        )
        return bool((low < -1).any() or (high > (size[1] + 1, size[0] + 1)).any())

    def draw(self, size: Size) -> Patch:
        """The pixels covered in a picture of (height, width)."""
        points = np.concatenate(self.rings)
        left, top = (max(0, math.floor(value)) for value in points.min(0))
        right = min(size[1], math.ceil(points[:, 0].max()))
        bottom = min(size[0], math.ceil(points[:, 1].max()))
        patch = np.zeros((max(0, bottom - top), max(0, right - left)), bool)
        for ring in self.rings if patch.size else ():
            patch |= _fill(ring, (top, left), patch.shape)
        return top, left, patch


def signed_area(ring: np.ndarray) -> float:
    """Signed area of a closed line (N, 2), whether or not its first point is repeated at its end.

    Positive where it runs counter-clockwise with y pointing up.
    """
    x, y = (ring - ring[0]).astype(np.float64).T  # near zero, or products would lose their digits
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _fill(ring: np.ndarray, corner: tuple[int, int], size: Size) -> np.ndarray:
    """The pixels of a window that a closed line encloses, by even-odd.

    Its points are rounded to the grid of fifths, and every edge becomes a digital line there: a
    step at a time along its longer side. Where it passes the middle of a column of pixels, between
    the second and third fifth, in and out change places for the rows below. Two edges that lie on
    each other, as bridges between parts do, cancel exactly.

    Args:
        corner: (top, left) of the window.
        size: its (height, width).
    """
    (height, width), (top, left) = size, corner
    corners = np.trunc(FIFTHS * ring + 0.5)
    start, end = corners, np.roll(corners, -1, axis=0)
    flat = (abs(end - start) @ (1, -1)) >= 0  # its longer side is the width
    axis = np.where(flat, 0, 1)[:, None]
    backwards = np.take_along_axis(start, axis, 1) > np.take_along_axis(end, axis, 1)
    start, end = np.where(backwards, end, start), np.where(backwards, start, end)
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.clip(np.ceil((low - 2) / FIFTHS) - left, 0, width).astype(np.int64)
    last = np.clip(np.floor((high - 3) / FIFTHS) + 1 - left, 0, width).astype(np.int64)
    counts = last - first
    counts = np.maximum(counts, 0)
    if counts.sum() > MAX_CROSSINGS:
        raise UserError("its outline runs to and fro too often to be painted")
    flips = np.zeros(width * (height + 1), np.uint8)
    for some in np.array_split(np.flatnonzero(counts), 1 + counts.sum() // 2**21):
        edge = np.repeat(some, counts[some])
        before = np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
        column = first[edge] + np.arange(len(edge)) - before
        x = FIFTHS * (left + column) + 2
        y = np.where(
            flat[edge],
            _flat_crossing(start[edge], end[edge], x),
            _steep_crossing(start[edge], end[edge], x),
        )
        row = np.clip(np.ceil((y - 2) / FIFTHS) - top, 0, height).astype(np.int64)
        np.bitwise_xor.at(flips, column * (height + 1) + row, 1)
    inside = np.bitwise_xor.accumulate(flips.reshape(width, height + 1), axis=1)
    return inside[:, :height].T.astype(bool)


def _flat_crossing(start: np.ndarray, end: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The upper y of a digital line, stepped along x, at x and x + 1."""
    slope = (end[:, 1] - start[:, 1]) / np.maximum(end[:, 0] - start[:, 0], 1)
    steps = x - start[:, 0]
    here, there = (np.trunc(start[:, 1] + slope * step + 0.5) for step in (steps, steps + 1))
    return np.minimum(here, there)


def _steep_crossing(start: np.ndarray, end: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The upper y of the step with which a digital line, stepped along y, leaves x for x + 1."""
    run = end[:, 0] - start[:, 0]
    slope = np.where(run == 0, 1, run) / np.maximum(end[:, 1] - start[:, 1], 1)
    rises = slope > 0

    def passed(step: np.ndarray) -> np.ndarray:
        return (np.trunc(start[:, 0] + slope * step + 0.5) > x) == rises

    first = np.floor((x + 0.5 - start[:, 0]) / slope) + 1
    first -= passed(first - 1)  # the division is only right to its last bit
    first += ~passed(first)
    return start[:, 1] + first - 1


@dataclass(frozen=True)
class Runs:
    """A mask as lengths of runs, zeros first, by turns (run-length encoding).

    Args:
        counts: (N,) int64; their sum is the number of pixels.
        size: (height, width) of the window that they fill.
        corner: (top, left) of that window in the picture.
        by_columns: as COCO counts; else by rows, as CVAT does.
    """

    counts: np.ndarray
    size: Size
    corner: tuple[int, int] = (0, 0)
    by_columns: bool = False

    def __post_init__(self):
        height, width = self.size
        if not 0 < height * width <= MAX_PIXELS:
            raise UserError(f"its mask claims {width}x{height} px")
        if (self.counts < 0).any() or int(self.counts.sum()) != height * width:
            total = int(self.counts.sum())
            raise UserError(f"its runs cover {total} of {height * width} pixels")

    @property
    def area(self) -> float:
        return float(self.counts[1::2].sum())

    def digest(self) -> bytes:
        head = repr((self.size, self.corner, self.by_columns)).encode()
        return hashlib.blake2b(head + self.counts.tobytes(), digest_size=16).digest()

    def beyond(self, size: Size) -> bool:
        return _window_beyond(self.corner, self.size, size)

    def draw(self, size: Size) -> Patch:
        values = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        height, width = self.size
        columns_first = self.by_columns
        mask = values.reshape(width, height).T if columns_first else values.reshape(height, width)
        return _clipped(*self.corner, mask, size)


@dataclass(frozen=True)
class Bitmap:
    """A mask as a PNG file within an annotation.

    Args:
        png: the file's bytes; any value but 0 is covered.
        corner: (top, left) in the picture.
        size: (height, width) that the annotation says it has.
    """

    png: bytes
    corner: tuple[int, int]
    size: Size

    def _pixels(self) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(self.png), formats=("PNG",)) as picture:
                if picture.size != self.size[::-1]:
                    width, height = picture.size
                    says = f"{self.size[1]}x{self.size[0]}"
                    raise UserError(
                        f"its mask has {width}x{height} px where its corners say {says}"
                    )
                return np.array(picture.convert("L")) > 0
        except (OSError, ValueError, SyntaxError, MemoryError) as error:
            raise UserError("its mask is no whole PNG picture") from error

    @property
    def area(self) -> float:
        return float(self._pixels().sum())

    def digest(self) -> bytes:
        head = repr((self.size, self.corner)).encode()
        return hashlib.blake2b(head + self.png, digest_size=16).digest()

    def beyond(self, size: Size) -> bool:
        return _window_beyond(self.corner, self.size, size)

    def draw(self, size: Size) -> Patch:
        return _clipped(*self.corner, self._pixels(), size)


Region = Outline | Runs | Bitmap


def _window_beyond(corner: tuple[int, int], window: Size, size: Size) -> bool:
    return any(c < 0 or c + w > s for c, w, s in zip(corner, window, size, strict=True))


def _clipped(top: int, left: int, mask: np.ndarray, size: Size) -> Patch:
    """The part of a window that lies in the picture."""
    mask = mask[max(0, -top) : max(0, size[0] - top), max(0, -left) : max(0, size[1] - left)]
    return max(0, top), max(0, left), mask


def outline(*rings) -> Outline:
    """An outline of any sequences of points, checked.

    Args:
        rings: of x, y by turns or in pairs, as numbers or as texts.

    Raises:
        UserError: no numbers, too many of them, NaN, or too far away.
    """
    return Outline(tuple(_ring(points) for points in rings))


def _ring(points) -> np.ndarray:
    try:
        flat = np.asarray(points, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError("its points are no numbers") from error
    if len(flat) % 2:
        raise UserError(f"it has an odd number of coordinates ({len(flat)})")
    if len(flat) > 2 * MAX_POINTS:
        raise UserError(f"it has {len(flat) // 2:,} points, more than {MAX_POINTS:,}")
    if not np.isfinite(flat).all():
        raise UserError("a coordinate is not a finite number")
    if len(flat) and np.abs(flat).max() > FARTHEST:
        raise UserError(f"a coordinate is {flat[np.abs(flat).argmax()]:g}, far outside any picture")
    return flat.reshape(-1, 2)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """A rectangle by two opposite corners."""
    return outline([left, top, right, top, right, bottom, left, bottom])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Outline:
    """An ellipse by its centre and radii, as so many points that no pixel's centre is on the wrong
    side: the arc leaves its chord by less than a hundredth of a pixel."""
    if not all(
        math.isfinite(value) and abs(value) <= FARTHEST for value in (x, y, radius_x, radius_y)
    ):
        raise UserError("its centre or radius is not a usable number")
    largest = max(1.0, abs(radius_x), abs(radius_y))
    angles = np.linspace(0, 2 * np.pi, max(64, math.ceil(23 * largest**0.5)), endpoint=False)
    return outline(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1))


def rotated(shape: Outline, degrees: float, around: tuple[float, float]) -> Outline:
    """An outline turned clockwise, as seen with y downwards, around (x, y)."""
    if not math.isfinite(degrees):
        raise UserError("its rotation is not a finite number")
    if not degrees:
        return shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cosine, sine], [-sine, cosine]])
    return outline(*((ring - around) @ turn + around for ring in shape.rings))
