"""Pictures from and to disk: every format, in one layout, whole or refused with a sentence.

Pictures come from strangers: they are cut off, mislabelled, rotated by EXIF, in 16 bits or CMYK, or
claim a size that would fill the memory. Everybody reads and writes them here, and gets HWC uint8
RGB as a person sees it, or a `UserError`, and never a part of a picture. Every function can be
called from several threads at once.
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing
from common.text import printable
from config import Size
from data.decoding import (
    ENDINGS,
    Header,
    decode,
    explained,
    header_of,
    open_file,
    orientation_of,
    turn,
)

# The formats that are written, again in Pillow's names.
WRITTEN = {
    ending: ENDINGS[ending][0]
    for ending in (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
}
# Lossy in the way that matters for masks: colours near edges are not those that were painted.
_LOSSY = ("JPEG", "MPO")


@dataclass(frozen=True)
class RawMask:
    """What a mask's file holds, before anybody says what it means.

    Args:
        values: (H, W) grey levels or palette indices, uint8, uint16, int32 or float32; or
            (H, W, 3) uint8 RGB. Alpha is dropped, EXIF's rotation applied.
        palette: (256, 3) uint8 RGB where `values` are palette indices.
        lossy: a JPEG, whose colours near edges are not those that were painted.
    """

    values: np.ndarray
    palette: np.ndarray | None
    lossy: bool


def is_image_name(path: str | Path) -> bool:
    """Whether a name has a picture's ending, in any case, and is no hidden or temporary file."""
    path = Path(path)
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The pictures in a folder by their names, sorted; links to folders are followed once.

    Raises:
        UserError: no such folder, or it may not be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder; check the path.")
    found, seen, waiting = [], set(), [folder]
    while waiting:
        current = waiting.pop()
        try:
            place = os.stat(current)
            if (place.st_dev, place.st_ino) in seen:  # a link back to a folder already listed
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(current) as entries:  # knows folders without asking for each
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting += [current / entry.name] if recursive else []
                    elif is_image_name(entry.name):
                        found.append(current / entry.name)
        except OSError as error:
            raise UserError(
                f"{printable(current)} cannot be listed ({error.strerror}); check its permissions."
            ) from error
    return sorted(found)


def map_files(work: Callable, items: list, title: str) -> list:
    """Do `work` on each item in threads (decoders leave the interpreter free), in order.

    A bar shows from two seconds on.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(tqdm(pool.map(work, items), title, len(items), delay=2, dynamic_ncols=True))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, nobody waits for the rest


def read_header(path: Path) -> Header:
    """Read what is known of a picture without decoding it.

    Raises:
        UserError: as `read_image`, as far as the header shows it.
    """
    with explained(path), open_file(path) as file:
        return header_of(path, file)


def image_size(path: Path) -> Size:
    """(height, width) of a picture as displayed, from its header alone.

    Raises:
        UserError: as `read_image`, as far as the header shows it.
    """
    return read_header(path).size


def read_image(path: Path) -> np.ndarray:
    """Read a picture as a person sees it: HWC uint8 RGB in [0, 255], EXIF's rotation applied.

    Grey becomes RGB, alpha is dropped, of an animation the first frame is taken, and of 16 bits the
    upper 8; where no number needs more than 12 bits, as cameras and satellites have, of these the
    upper 8. Other numbers (float, 32 bits) are scaled by their range: up to 1 as shares of
    white, up to 255 as they are, up to 65,535 as 16 bits, beyond by their largest.

    Raises:
        UserError: missing, no regular file, no permission, empty, no picture, of another format
            than its ending says, larger than `MAX_PIXELS`, cut off or damaged.
    """
    with explained(path), open_file(path) as file:
        return _as_seen(path, file)


def read_picture(path: Path) -> tuple[np.ndarray, Header]:
    """A picture as `read_image` gives it and its header, by one look into the file.

    Raises:
        UserError: as `read_image`.
    """
    with explained(path), open_file(path) as file:
        return _as_seen(path, file), header_of(path, file)


def _as_seen(path: Path, file: BinaryIO) -> np.ndarray:
    picture = decode(path, file)
    if isinstance(picture, np.ndarray):
        return _as_rgb(spread_12_bits(picture))
    if picture.mode.startswith("I") or picture.mode == "F":
        array = _as_rgb(spread_12_bits(np.asarray(picture)))
    else:
        picture.info.pop("transparency", None)  # alpha is dropped, in palettes too
        array = np.array(picture.convert("RGB"))
    return turn(array, orientation_of(picture))


def read_mask_raw(path: Path) -> RawMask:
    """Read what a mask's file holds, without a guess at what it means.

    Raises:
        UserError: as `read_image`.
    """
    with explained(path), open_file(path) as file:
        picture = decode(path, file)
        if isinstance(picture, np.ndarray):
            return RawMask(_as_rgb(picture) if picture.ndim == 3 else picture, None, False)
        palette = None
        if picture.mode in ("P", "PA"):
            colors = picture.getpalette("RGB") or []
            palette = np.zeros((256, 3), np.uint8)
            palette.reshape(-1)[: len(colors)] = colors
        elif picture.mode == "1":
            picture = picture.convert("L")
        elif picture.mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and picture.mode[:2] != "I;":
            picture = picture.convert("RGB")
        values = np.array(picture)
        if values.ndim == 3:  # alpha is dropped
            values = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
        values = values.astype(values.dtype.newbyteorder("="))
        return RawMask(turn(values, orientation_of(picture)), palette, picture.format in _LOSSY)


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize a picture: averaging when it shrinks, since sampling would flicker; else linear."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=way)


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize class indices (H, W) uint8; a value between two classes would be a third one."""
    if mask.shape == tuple(size):
        return mask
    # EXACT takes the pixel under the centre; plain NEAREST would shift the mask by up to a half.
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def fit_within(size: Size, box: Size) -> Size:
    """The largest (height, width) in the proportions of `size` that a box holds."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """Scale a picture down until its longer side has `longest` pixels."""
    if max(image.shape[:2]) <= longest:
        return image
    return resize_image(image, fit_within(image.shape[:2], (longest, longest)))


class Normalisation:
    """What the network is fed: each channel without the training's mean, over its deviation.

    Args:
        mean, std: of RGB scaled to [0, 1].
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]):
        self.mean, self.std = (
            np.array(values, np.float32)[:, None, None] * 255 for values in (mean, std)
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """HWC uint8 RGB to (3, H, W) float32."""
        planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
        return (planes - self.mean) / self.std


def write_image(path: Path, image: np.ndarray, quality: int = 92) -> None:
    """Write HWC uint8 RGB, whole or not at all, in the format of the ending.

    Raises:
        UserError: the ending is none that can be written, or the format has no such size.
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    kind = WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"{printable(path)} cannot be written; choose the ending .jpg, .png, .webp, .tif, .bmp."
        )
    if kind in ("JPEG", "WEBP") and max(image.shape) > (65500 if kind == "JPEG" else 16383):
        raise UserError(
            f"{printable(path)} cannot be written: {image.shape[1]}x{image.shape[0]} px are too "
            f"many for {kind}; choose the ending .png."
        )
    options = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
    # Pillow's JPEG writer does not notice a full disk; Python's does.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def encode_jpeg(image: np.ndarray, quality: int, subsampling: str = "4:2:0") -> bytes:
    """HWC uint8 RGB as the bytes of a JPEG file, for pages that carry their pictures."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def write_mask(path: Path, mask: np.ndarray, colors: tuple) -> None:
    """Write class indices (H, W) uint8 as a palette PNG: labels to a program, colours to a person.

    Args:
        colors: of each class, RGB in [0, 255]; 255 (ignored) gets Pascal VOC's pale yellow.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[255] = (224, 224, 192)
    palette[: len(colors)] = colors
    picture = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def spread_12_bits(array: np.ndarray, top: float | None = None) -> np.ndarray:
    """Numbers of 12 bits, as cameras and satellites write them into 16, over all of these.

    Args:
        array: of any type; anything but 16 bits stays as it is.
        top: the largest number of the whole picture, where `array` (H, W, ...) is a part of it.
    """
    if array.dtype.kind != "u" or array.itemsize != 2:
        return array
    if top is None:
        top = array.reshape(*array.shape[:2], -1)[..., :3].max()  # without alpha
    return np.minimum(array, 4095) << 4 if top < 4096 else array


def to_8_bits(array: np.ndarray, top: float | None = None) -> np.ndarray:
    """Numbers of any type as uint8: of 16 bits the upper 8, others by their range.

    Args:
        top: see `spread_12_bits`.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    array = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(array.max()) if top is None else top
    scale = 255 if top <= 1 else 1 if top <= 255 else 255 / max(top, 65535)
    return np.clip(array * scale, 0, 255).round().astype(np.uint8)


def _as_rgb(array: np.ndarray) -> np.ndarray:
    """Numbers of any type, grey (H, W) or OpenCV's BGR with or without alpha, as HWC uint8 RGB."""
    array = to_8_bits(array)
    if array.ndim == 2 or array.shape[2] < 3:
        grey = array if array.ndim == 2 else array[..., 0]
        return np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(array[..., 2::-1])
