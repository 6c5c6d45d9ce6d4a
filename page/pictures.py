"""Photographs and masks as the editor asks for them: in tiles, as raw indices, by likeness.

A photograph of 50 megapixels would fill a telephone's memory as one picture of a page: the browser
gets square tiles at the scale it shows, JPEGs of what is upright already, and never sees EXIF.
"""

import hashlib
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError
from config import IGNORE_INDEX, Size
from data.images import encode_jpeg, read_image, resize_image

TILE = 512  # pixels of a tile's side
HELD = 512 << 20  # bytes of decoded photographs; 50 megapixels take 150 MB


class Pictures:
    """The photographs that were looked at last, decoded."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> np.ndarray:
        """A photograph, upright, HWC uint8 RGB.

        Raises:
            UserError: it cannot be read.
        """
        with self._lock:  # two tiles of one photograph must not decode it twice
            facts = path.stat()
            key = (path, facts.st_mtime_ns, facts.st_size)
            if key not in self._held:
                self._held[key] = read_image(path)
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(i.nbytes for i in self._held.values()) > HELD:
                self._held.popitem(last=False)
            return self._held[key]

    def tile(self, path: Path, level: int, column: int, row: int) -> bytes:
        """A tile of a photograph as a JPEG.

        Args:
            level: how often the photograph is halved.

        Raises:
            UserError: there is no such tile.
        """
        image, side = self.read(path), TILE << level
        part = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        if not part.size:
            raise UserError("The photograph has no such tile.")
        height, width = part.shape[:2]
        size = max(1, -(-height >> level)), max(1, -(-width >> level))
        return encode_jpeg(resize_image(part, size), quality=88)

    def alike(self, path: Path, x: int, y: int, tolerance: int) -> tuple[list[int], bytes]:
        """The connected pixels around one that look like it: a wand.

        Differences are those of CIE L*a*b*, which is nearer to what eyes see than RGB.

        Args:
            x, y: of the pixel.
            tolerance: largest difference from its colour in each of L*, a*, b* of 8 bits.

        Returns:
            the box [left, top, width, height] of what was found, and 1 or 0 for each of its
            pixels, row by row.
        """
        image = self.read(path)
        height, width = image.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise UserError("That place lies outside the photograph.")
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        found = np.zeros((height + 2, width + 2), np.uint8)
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
        limits = (tolerance,) * 3
        box = cv2.floodFill(lab, found, (x, y), 0, limits, limits, flags)[3]
        left, top, w, h = box
        part = found[1 + top : 1 + top + h, 1 + left : 1 + left + w]
        return list(box), part.tobytes()


def pack(mask: np.ndarray) -> bytes:
    """Class indices row by row, gzipped: a mask of 50 megapixels is a few hundred kilobytes."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(np.ascontiguousarray(mask).tobytes()) + packer.flush()


def unpack(content: bytes, size: Size, classes: int) -> np.ndarray:
    """Class indices (H, W) uint8 out of gzipped or plain bytes, bounded by what must come out.

    Raises:
        UserError: they are too few or too many, or hold an index that no class has.
    """
    count = size[0] * size[1]
    if content[:2] == b"\x1f\x8b":
        try:
            content = zlib.decompressobj(31).decompress(content, count + 1)
        except zlib.error as error:
            raise UserError(f"The mask arrived damaged ({error}); save it again.") from error
    if len(content) != count:
        raise UserError(
            f"The mask has {len(content)} pixels, its photograph {size[1]}x{size[0]}; reload it."
        )
    mask = np.frombuffer(content, np.uint8).reshape(size)
    counts = np.bincount(mask.ravel(), minlength=256)
    if counts[classes:IGNORE_INDEX].any():
        raise UserError(f"The mask has an index beyond its {classes} classes; reload the page.")
    return mask


def fingerprint(mask: np.ndarray) -> str:
    """What a mask holds, as an ETag: two windows see by it that the other one has saved."""
    digest = hashlib.blake2b(repr(mask.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(mask))
    return f'"{digest.hexdigest()}"'
