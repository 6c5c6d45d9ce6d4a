"""A video's frames as they are stored: their orientation, and masks drawn onto them in YUV."""

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from config import ClassTable, Size

OPACITY = 0.5
# FFmpeg's numbers for matrices (AVColorSpace) and ranges (AVColorRange).
BT709, LIMITED, FULL = 1, 1, 2
# Weights of red and blue in luma; BT.601 where a video does not say, as swscale assumes.
LUMA_WEIGHTS = {BT709: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT601_WEIGHTS = (0.299, 0.114)


class Turn:
    """Turn arrays between a video's stored orientation and the upright one of its players.

    Args:
        matrix: nine integers of a display matrix (FFmpeg's libavutil/display.h); only the quarter
            turns and mirrors that cameras write are followed.
    """

    def __init__(self, matrix: np.ndarray | None):
        a, b, c, d = (1, 0, 0, 1) if matrix is None else np.sign(matrix[[0, 1, 3, 4]]).tolist()
        # A stored point (x, y) is shown at (a x + c y, b x + d y).
        self._swap = a == 0 and d == 0 and b != 0 and c != 0
        mirrored = (c < 0, b < 0) if self._swap else (a < 0, d < 0)  # along x, along y
        self._flip_code = {(True, False): 1, (False, True): 0, (True, True): -1}.get(mirrored)

    def upright_size(self, height: int, width: int) -> Size:
        """(height, width) of the upright picture."""
        return (width, height) if self._swap else (height, width)

    def upright(self, array: np.ndarray) -> np.ndarray:
        """(H, W, ...) as stored to the upright (H', W', ...), contiguous."""
        return self._flip(cv2.transpose(array) if self._swap else array)

    def stored(self, array: np.ndarray) -> np.ndarray:
        """The way back."""
        array = self._flip(array)
        return cv2.transpose(array) if self._swap else array

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array if self._flip_code is None else cv2.flip(array, self._flip_code)


class Tinter:
    """Draw masks onto frames where they are stored, in YUV, as `utils.overlay` does in RGB.

    YUV is linear in RGB, so that blending in either gives one picture, but here neither the way
    back from RGB is paid nor the photograph's colours resampled: 3 ms of a 1080p frame, not 35.

    Args:
        classes: their `vis_colors` are drawn; black leaves the picture as it is.
        turn: between the mask's upright orientation and the stored one.
    """

    def __init__(self, classes: ClassTable, turn: Turn):
        self._turn = turn
        self._to_yuv420p = VideoReformatter()
        self._rgb = np.zeros((256, 3))
        self._rgb[: len(classes)] = classes.vis_colors
        self._visible = self._rgb.any(axis=1).astype(np.uint8)
        self._tables: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, picture: av.VideoFrame, mask: np.ndarray) -> av.VideoFrame:
        """A tinted copy in yuv420p whose odd sides are lengthened to even ones.

        Args:
            picture: any format.
            mask: (H, W) uint8 class indices, upright.
        """
        mask = self._turn.stored(mask)
        table = self._table(*colours_of(picture))
        source = self._as_yuv420p(picture)
        height, width = source.height, source.width
        result = av.VideoFrame(width + width % 2, height + height % 2, "yuv420p")
        small = np.ascontiguousarray(mask[::2, ::2])
        parts = zip(_planes(source), _planes(result), (mask, small, small), table, strict=True)
        for plane, target, labels, colour in parts:
            h, w = plane.shape
            target[:h, :w] = plane
            self._tint(target[:h, :w], labels, colour)
            target[h:], target[:, w:] = target[h - 1 : h], target[:, w - 1 : w]
        result.color_range, result.colorspace = colours_of(picture)
        return result

    def _tint(self, plane: np.ndarray, labels: np.ndarray, table: np.ndarray) -> None:
        """Blend one plane (h, w) in place: half the class's colour inside, all of it around."""
        seen = cv2.LUT(labels, self._visible)
        x, y, w, h = cv2.boundingRect(seen)
        if w == 0:
            return
        box = slice(y, y + h), slice(x, x + w)
        labels, seen, part = labels[box], seen[box], plane[box]
        colour = cv2.LUT(labels, table)
        blended = cv2.addWeighted(part, 1 - OPACITY, colour, OPACITY, 0)
        edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        outline = cv2.min(edges, seen)
        part[:] = cv2.copyTo(colour, outline, cv2.copyTo(blended, seen, part.copy()))

    def _as_yuv420p(self, picture: av.VideoFrame) -> av.VideoFrame:
        if picture.format.name in ("yuv420p", "yuvj420p"):  # the same bytes
            return picture
        full_range, matrix = colours_of(picture)
        colours = {"dst_color_range": full_range or LIMITED, "dst_colorspace": matrix}
        return self._to_yuv420p.reformat(picture, format="yuv420p", threads=1, **colours)

    def _table(self, full_range: int, matrix: int) -> np.ndarray:
        """Each class's colour as Y, U and V: (3, 256) uint8 (ITU-R BT.601, 709 and 2020)."""
        if (full_range, matrix) not in self._tables:
            red, blue = LUMA_WEIGHTS.get(matrix, BT601_WEIGHTS)
            luma = self._rgb @ (red, 1 - red - blue, blue)
            u = (self._rgb[:, 2] - luma) / (2 - 2 * blue)
            v = (self._rgb[:, 0] - luma) / (2 - 2 * red)
            if full_range == FULL:
                yuv = [luma, 128 + u, 128 + v]
            else:
                yuv = [16 + luma * 219 / 255, 128 + u * 224 / 255, 128 + v * 224 / 255]
            self._tables[full_range, matrix] = np.clip(np.rint(yuv), 0, 255).astype(np.uint8)
        return self._tables[full_range, matrix]


def colours_of(picture: av.VideoFrame) -> tuple[int, int]:
    """The range and matrix (AVColorRange, AVColorSpace) that a frame has once it is yuv420p."""
    name = picture.format.name
    if picture.format.is_rgb or picture.format.has_palette or name.startswith("gray"):
        return LIMITED, BT709
    return (FULL if name.startswith("yuvj") else int(picture.color_range)), int(picture.colorspace)


def _planes(picture: av.VideoFrame) -> list[np.ndarray]:
    """The planes of a yuv420p frame as (h, w) uint8 views of its memory."""
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in picture.planes
    ]
