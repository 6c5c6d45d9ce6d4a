"""From a mask to polygons that people can edit, and that give the mask back when they are filled.

OpenCV follows outlines through the centres of the border's pixels, where a line one pixel wide has
no area. Here they follow the pixels' edges: coordinates are those of the picture's corners, the
first pixel reaches from 0 to 1, and the area of an outline is its number of pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from data.formats.regions import signed_area

# Directions are counted against the clock from the east, 0 to 7; a pixel's edges likewise, 0 to 3.
# By a step's (dx, dy) + 1, y pointing down:
_DIRECTION = np.array([(3, 4, 5), (2, -1, 6), (1, 0, 7)])
# Where each edge of a pixel ends for who passes it with the pixel on the left.
_ENDS = np.array([(1, 0), (0, 0), (0, 1), (1, 1)])
_INWARDS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


def _edges_passed() -> tuple[np.ndarray, np.ndarray]:
    """Which edges of a pixel are border, by the directions of the steps to it and from it.

    OpenCV keeps the background on the right, so these are the edges that one passes on turning
    against the clock from where one came from to where one goes.

    Returns:
        (8, 8) how many, and (8, 8, 4) which, in their order.
    """
    count, which = np.zeros((8, 8), int), np.zeros((8, 8, 4), int)
    for came in range(8):
        for goes in range(8):
            back = came + 4
            turn = range(back + 1, back + 1 + (goes - back - 1) % 8)
            passed = [direction % 8 // 2 for direction in turn if direction % 2 == 0]
            count[came, goes], which[came, goes, : len(passed)] = len(passed), passed
    return count, which


_COUNT, _WHICH = _edges_passed()


@dataclass(frozen=True)
class Region:
    """A connected patch of one class; pixels that touch at a corner are connected.

    Args:
        label: the class's index.
        outer: (N, 2) x, y of the outline, its inside on the left.
        holes: outlines of what it leaves out, the region on their left, too.
    """

    label: int
    outer: np.ndarray
    holes: tuple[np.ndarray, ...]

    @property
    def area(self) -> float:
        """Square pixels of the outline without its holes."""
        return abs(sum(map(signed_area, (self.outer, *self.holes))))

    @property
    def box(self) -> list[float]:
        """Left, top, width and height."""
        low, high = self.outer.min(0), self.outer.max(0)
        return [*low.tolist(), *(high - low).tolist()]

    @property
    def ring(self) -> np.ndarray:
        """(N, 2) one line around the region, its holes joined to it by bridges without width.

        Filled by the even-odd rule or by the non-zero rule, holes stay empty. Formats whose
        polygons know no holes can hold it, and their editors edit it.
        """
        ring = self.outer.T
        for hole in sorted((hole.T for hole in self.holes), key=lambda hole: hole[0].min()):
            ring = _bridged(ring, np.roll(hole, -hole[0].argmin(), 1))
        return ring.T


def _bridged(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Join a hole (2, M), its leftmost point first, to a line (2, N).

    The bridge runs straight to the left, through the region alone: holes that begin further left
    are part of the line already.
    """
    (x, y), after = hole[:, 0], np.roll(ring, -1, 1)
    low, high = np.minimum(ring[1], after[1]), np.maximum(ring[1], after[1])
    edges = np.flatnonzero((low <= y) & (y <= high) & (low < high))
    (x0, y0), (x1, y1) = ring[:, edges], after[:, edges]
    reached = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    edge, begin = 0, ring[:, :1]  # for a simplified hole that reaches beyond the outline
    if (reached <= x).any():
        best = np.where(reached <= x, reached, -np.inf).argmax()
        edge, begin = edges[best], np.array([[reached[best]], [y]])
    parts = ring[:, : edge + 1], begin, hole, hole[:, :1], begin, ring[:, edge + 1 :]
    return np.hstack([part.astype(ring.dtype) for part in parts])


def regions_of(
    mask: np.ndarray, num_classes: int, simplify: float = 0, inset: float = 0
) -> Iterator[Region]:
    """The regions of all classes but the first, class by class, from the top.

    Args:
        mask: (H, W) uint8 class indices.
        simplify: pixels by which an outline may be off to need fewer points (Douglas and Peucker
            1973); 0 for exact ones. What would lose its area by it stays exact.
        inset: pixels by which lines run within the border. At 0.25 they give the same pixels to
            those who fill what is between them, and to those who also paint the pixels that a
            line passes, as LabelMe does, and OpenCV at whole numbers.
    """
    for label in range(1, num_classes):
        binary = (mask == label).view(np.uint8)
        chains, family = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        rings = [_along_edges(chain[:, 0], binary, inset) for chain in chains]
        rings = [_simplified(ring, simplify) for ring in rings]
        holes: dict[int, list[np.ndarray]] = {}
        for ring, (*_, parent) in zip(rings, family[0] if rings else (), strict=True):
            holes.setdefault(int(parent), []).append(ring)
        for number in reversed(range(len(rings))):
            if family[0, number, 3] < 0:
                yield Region(label, rings[number], tuple(holes.get(number, ())))


def _along_edges(chain: np.ndarray, binary: np.ndarray, inset: float) -> np.ndarray:
    """The corners (M, 2) of the line between a region and what is beside it.

    Args:
        chain: (N, 2) the region's pixels along it, each a neighbour of the one before.
        binary: (H, W) the regions.
    """
    if len(chain) == 1:
        edges, pixels = np.arange(4), chain.repeat(4, 0)
    else:
        steps = np.roll(chain, -1, 0) - chain + 1
        goes = _DIRECTION[steps[:, 0], steps[:, 1]]
        came = np.roll(goes, 1)
        count = _COUNT[came, goes]
        edges = _WHICH[came, goes][np.arange(4) < count[:, None]]
        pixels = chain.repeat(count, 0)
    following = np.roll(edges, -1)
    turns = edges != following
    corners = (pixels + _ENDS[edges])[turns]
    if not inset:
        return corners
    # To the middle of the pixel inside the turn; at a reflex one, that is neither of the two whose
    # edges meet, and where it is none of the region's, these touch at the corner alone: the line
    # then goes through it, from the one pixel into the other.
    before, after = pixels[turns], np.roll(pixels, -1, 0)[turns]
    inside = corners + (_INWARDS[edges] + _INWARDS[following])[turns] // 2
    reflex = (following == (edges - 1) % 4)[turns]
    touch = reflex & (binary[tuple(inside.clip(0, np.array(binary.shape[::-1]) - 1).T[::-1])] == 0)
    ways = np.stack([np.where(touch[:, None], before, inside), after], 1)
    moved = corners[:, None] + 2 * inset * (ways + 0.5 - corners[:, None])
    return moved[np.stack([np.full_like(touch, True), touch], 1)]


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    if not tolerance:
        return ring
    fewer = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0]
    return fewer.astype(np.float64) if len(fewer) > 2 and signed_area(fewer) else ring * 1.0
