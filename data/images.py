"""Pictures from and to disk: every format, in one layout, whole or refused with a sentence.

Pictures come from strangers: they are cut off, mislabelled, rotated by EXIF, in 16 bits or CMYK, or
claim a size that would fill the memory. Everybody reads and writes them here, and gets HWC uint8
RGB as a person sees it, or a `UserError`, and never a part of a picture. Every function can be
called from several threads at once.
"""

import importlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing
from common.text import printable
from config import Size

# Pixels of the largest picture that is decoded: 12,000 x 9,000 is 108 million. A header may claim
# any number in a few bytes, so it is checked before anything is allocated.
MAX_PIXELS = 200_000_000

# Each ending with the formats, in Pillow's names, that may be behind it. A phone's .jpg may hold
# several pictures (MPO). Formats that would start another program (EPS) are left out on purpose.
_FORMATS = """
JPEG/MPO .jpg .jpeg .jpe .jfif .mpo
PNG .png .apng
BMP/DIB .bmp .dib
GIF .gif
TIFF .tif .tiff
WEBP .webp
AVIF/HEIF .avif
HEIF/AVIF .heic .heif .hif
JPEG2000 .jp2 .j2k .jpx .jpf
PPM .ppm .pgm .pbm .pnm .pfm
TGA .tga
PCX .pcx
SGI .sgi .rgb
SUN .ras .sr
QOI .qoi
DDS .dds
PSD .psd
HDR .hdr
"""
ENDINGS = {
    ending: tuple(names.split("/"))
    for names, *endings in map(str.split, _FORMATS.strip().splitlines())
    for ending in endings
}
# The formats that are written, again in Pillow's names.
WRITTEN = {
    ending: ENDINGS[ending][0]
    for ending in (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
}
# Lossy in the way that matters for masks: colours near edges are not those that were painted.
_LOSSY = ("JPEG", "MPO")
# What the last bytes of a whole file hold, though others, such as a phone's film, may follow.
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}

# Set once, here, and never in a call: threads must not load decoders at the same time, Pillow's
# own limit warns in the middle of a run, and what it says of damage is said by our sentences.
Image.init()
for _name in ("pi_heif", "pillow_heif"):  # optional, one of them reads what phones write
    with suppress(ImportError):
        importlib.import_module(_name).register_heif_opener()
        break
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")

_PILLOW_FORMATS = tuple({name for names in ENDINGS.values() for name in names} & set(Image.OPEN))


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    Args:
        height, width: in pixels, as displayed.
        orientation: EXIF's, 1 to 8; 1 means stored as displayed.
        format: Pillow's name.
        mode: Pillow's name of the pixels' layout.
    """

    height: int
    width: int
    orientation: int
    format: str
    mode: str

    @property
    def size(self) -> Size:
        """(height, width) as displayed."""
        return self.height, self.width

    @property
    def stored_size(self) -> Size:
        """(height, width) before EXIF's rotation."""
        return (self.width, self.height) if self.orientation >= 5 else self.size


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
    with _explained(path), _open_file(path) as file:
        return _header(path, file)


def _header(path: Path, file: BinaryIO) -> Header:
    file.seek(0)
    try:
        picture = Image.open(file, formats=_PILLOW_FORMATS)
    except UnidentifiedImageError:
        picture = None
        size, orientation, kind = _foreign_header(file)
        mode = kind
    else:
        size, kind, mode = (picture.height, picture.width), picture.format, picture.mode
        orientation = _orientation(picture, file)
    _check(path, size, kind)
    # Pillow reports TIFF's size as displayed, and that of all others as stored.
    if orientation >= 5 and not isinstance(picture, TiffImagePlugin.TiffImageFile):
        size = size[::-1]
    return Header(*size, orientation, kind, mode)


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
    with _explained(path), _open_file(path) as file:
        return _as_seen(path, file)


def read_picture(path: Path) -> tuple[np.ndarray, Header]:
    """A picture as `read_image` gives it and its header, by one look into the file.

    Raises:
        UserError: as `read_image`.
    """
    with _explained(path), _open_file(path) as file:
        return _as_seen(path, file), _header(path, file)


def _as_seen(path: Path, file: BinaryIO) -> np.ndarray:
    picture = _decode(path, file)
    if isinstance(picture, np.ndarray):
        return _as_rgb(spread_12_bits(picture))
    if picture.mode.startswith("I") or picture.mode == "F":
        array = _as_rgb(spread_12_bits(np.asarray(picture)))
    else:
        picture.info.pop("transparency", None)  # alpha is dropped, in palettes too
        array = np.array(picture.convert("RGB"))
    return turn(array, _orientation(picture))


def read_mask_raw(path: Path) -> RawMask:
    """Read what a mask's file holds, without a guess at what it means.

    Raises:
        UserError: as `read_image`.
    """
    with _explained(path), _open_file(path) as file:
        picture = _decode(path, file)
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
        return RawMask(turn(values, _orientation(picture)), palette, picture.format in _LOSSY)


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W, ...) as stored into one as displayed, by EXIF's orientation 1 to 8."""
    if orientation >= 5:  # mirrored along the diagonal; the rest is done by the flips
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence about the file."""
    name = printable(path)
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{name} may not be read; check its permissions.") from error
    except MemoryError as error:
        raise UserError(f"{name} does not fit into the memory; make it smaller.") from error
    except Exception as error:  # decoders raise anything, from struct.error to SyntaxError
        reason = printable(" ".join(str(error).split())[:120]) or type(error).__name__
        raise UserError(
            f"{name} is cut off or damaged and cannot be decoded ({reason}); replace or remove it."
        ) from error


@contextmanager
def _open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular, non-empty file; anything else, such as a pipe, could wait for ever."""
    name = printable(path)
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be found ({reason}); check the path.") from error
    if stat.S_ISDIR(facts.st_mode):
        raise UserError(f"{name} is a folder, not a picture; give a file.")
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{name} is a device or a pipe, not a picture; give a regular file.")
    if facts.st_size == 0:
        raise UserError(f"{name} is empty (0 bytes); replace or remove it.")
    with open(path, "rb") as file:
        yield file


def _decode(path: Path, file: BinaryIO) -> Image.Image | np.ndarray:
    """Decode with Pillow, or with OpenCV (in BGR) what only that reads."""
    try:
        picture = Image.open(file, formats=_PILLOW_FORMATS)
    except UnidentifiedImageError:
        size, orientation, kind = _foreign_header(file)
        _check(path, size, kind)
        file.seek(0)
        array = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.shape[:2] != size:
            raise ValueError("incomplete") from None
        return turn(array, orientation)
    _check(path, (picture.height, picture.width), picture.format)
    deep = ";16" in str(picture.tile[:1]) and picture.mode in ("RGB", "RGBA", "LA")
    picture.load()
    if mark := _END_MARKS.get(picture.format):
        file.seek(0)
        if mark not in file.read():  # all pixels may be there, but something was cut off
            raise ValueError("its end is missing")
    if (
        deep
    ):  # Pillow has no colours of 16 bits and keeps the upper 8, which may hold next to nothing
        file.seek(0)
        array = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        if array is not None and {*array.shape[:2]} == {picture.height, picture.width}:
            return turn(array, _orientation(picture))
    return picture


def _check(path: Path, size: Size, kind: str) -> None:
    """Refuse sizes that would fill the memory, and contents that the ending does not announce.

    A JPEG that calls itself .png is an error because its user counts on a lossless mask.
    """
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"{printable(path)} has no pixels ({width}x{height}); remove it.")
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{printable(path)} claims {width}x{height} px, more than the limit of "
            f"{MAX_PIXELS // 10**6} million; make it smaller or remove it."
        )
    if kind not in ENDINGS.get(Path(path).suffix.lower(), (kind,)):
        raise UserError(
            f"{printable(path)} is a {kind} picture despite its ending {Path(path).suffix}; "
            "give it the right one."
        )


def _orientation(picture: Image.Image, file: BinaryIO | None = None) -> int:
    """EXIF's orientation, 1 to 8; unreadable EXIF turns nothing, as in every viewer.

    Args:
        file: the picture's, where it is not yet decoded: PNG may carry EXIF behind the pixels, and
            asking Pillow for it decodes them.
    """
    if file is not None and picture.format == "PNG" and "exif" not in picture.info:
        file.seek(0)
        if b"eXIf" not in file.read():
            return 1
    try:
        value = picture.getexif().get(Base.Orientation, 1)
    except (ValueError, SyntaxError, TypeError, KeyError, OSError, struct.error):
        return 1
    return value if value in range(1, 9) else 1


def _foreign_header(file: BinaryIO) -> tuple[Size, int, str]:
    """Size, orientation and format of the pictures that OpenCV reads and Pillow does not.

    These are TIFFs of unusual depths, and Radiance HDR.

    Raises:
        UserError: it is none of these.
    """
    file.seek(0)
    head = file.read(1024)
    if head[:4] in (b"II*\0", b"MM\0*"):
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
        file.seek(tags.next)
        tags.load(file)
        return (int(tags[257]), int(tags[256])), int(tags.get(274, 1)), "TIFF"
    if head[:2] == b"#?" and b"\n\n" in head:
        axes = head.split(b"\n\n", 1)[1].split(b"\n", 1)[0].split()
        if len(axes) == 4 and axes[0] == b"-Y" and axes[2] == b"+X":
            return (int(axes[1]), int(axes[3])), 1, "HDR"
    if head[4:8] == b"ftyp" and "HEIF" not in Image.OPEN:
        raise UserError(
            f"{printable(file.name)} is a HEIC picture, which needs a package: "
            "pip install -r requirements-heic.txt"
        )
    raise UserError(
        f"{printable(file.name)} holds no picture in a known format; replace or remove it."
    )


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
