"""Strangers' files: opened, looked into and decoded, or refused with a sentence.

They are cut off, mislabelled, rotated by EXIF, or claim a size that would fill the memory. Which
formats there are, and how each is decoded, is known here alone; `data.images` makes of it what a
person sees. Every function can be called from several threads at once.
"""

import importlib
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base

from common.errors import UserError
from common.packages import install_command
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
# How the brand of an ISO media file begins that holds a picture: HEIF, AVIF, JPEG XL, a raw one.
STILLS = (
    *(b"hei", b"hev", b"mif", b"msf", b"mia", b"1pi", b"vvi"),
    *(b"avi", b"jpe", b"j2k", b"jxl", b"crx"),
)
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

PILLOW_FORMATS = tuple({name for names in ENDINGS.values() for name in names} & set(Image.OPEN))


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


@contextmanager
def explained(path: Path) -> Iterator[None]:
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
def open_file(path: Path) -> Iterator[BinaryIO]:
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


def header_of(path: Path, file: BinaryIO) -> Header:
    file.seek(0)
    try:
        picture = Image.open(file, formats=PILLOW_FORMATS)
    except UnidentifiedImageError:
        picture = None
        size, orientation, kind = _foreign_header(file)
        mode = kind
    else:
        size, kind, mode = (picture.height, picture.width), picture.format, picture.mode
        orientation = orientation_of(picture, file)
    _check(path, size, kind)
    # Pillow reports TIFF's size as displayed, and that of all others as stored.
    if orientation >= 5 and not isinstance(picture, TiffImagePlugin.TiffImageFile):
        size = size[::-1]
    return Header(*size, orientation, kind, mode)


def decode(path: Path, file: BinaryIO) -> Image.Image | np.ndarray:
    """Decode with Pillow, or with OpenCV (in BGR) what only that reads."""
    try:
        picture = Image.open(file, formats=PILLOW_FORMATS)
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
    if deep:  # Pillow keeps the upper 8 of 16 bits of colours, which may hold next to nothing
        file.seek(0)
        array = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        if array is not None and {*array.shape[:2]} == {picture.height, picture.width}:
            return turn(array, orientation_of(picture))
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


def orientation_of(picture: Image.Image, file: BinaryIO | None = None) -> int:
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
    if _is_video(head):
        raise UserError(
            f"{printable(file.name)} is a video and no picture; inference_video.py segments it."
        )
    if head[4:8] == b"ftyp" and "HEIF" not in Image.OPEN:
        raise UserError(
            f"{printable(file.name)} is a HEIC picture, which needs a package: "
            + install_command("-r requirements-heic.txt")
        )
    raise UserError(
        f"{printable(file.name)} holds no picture in a known format; replace or remove it."
    )


def _is_video(head: bytes) -> bool:
    """Whether a file begins as MP4 and its kin, Matroska, WebM or AVI do."""
    if head[4:8] == b"ftyp":
        return head[8:11] not in STILLS
    return head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W, ...) as stored into one as displayed, by EXIF's orientation 1 to 8."""
    if orientation >= 5:  # mirrored along the diagonal; the rest is done by the flips
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
