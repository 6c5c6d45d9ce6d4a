"""What a data folder holds: its pairs, its class table, and what the values of its masks mean.

A folder is laid out as in the article (train_images, train_masks, valid_images, valid_masks, and
test_images, test_masks where there are any) or as CVAT exports it ("Segmentation mask 1.1").
"""

import hashlib
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import config
from config import IGNORE_INDEX, RGB, ClassTable
from errors import UserError
from images import (
    RawMask,
    list_images,
    printable,
    read_header,
    read_mask_raw,
    resize_mask,
    turn,
)

SPLITS = ("train", "valid", "test")
# Names in a class table that mean "not labelled": their pixels become 255.
IGNORED_NAMES = {"void", "ignore", "ignored", "unlabel", "unlabeled", "unlabelled"}
# For classes that would be black in overlays.
SPARE_COLORS = [(255, 40, 90), (0, 160, 255), (255, 200, 0), (150, 80, 255), (0, 200, 120)]
# A value that no class has; it never leaves this room.
UNKNOWN = 254
MAX_CLASSES = 254

# How far (in any channel) JPEG may move a colour that is still surely meant, and the share of the
# pixels, all near edges, that may be further away.
JPEG_TOLERANCE = 48
JPEG_FAR_SHARE = 0.1

CVAT_LISTS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
CVAT_VALID_SHARE = 0.15


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask.

    Args:
        stem: the photograph's name without its ending.
    """

    image: Path
    mask: Path
    stem: str


# Pairs


def find_pairs(root: Path, split: str, skip_bad: bool = False) -> list[Pair]:
    """Pair the photographs of a split with their masks by name, sorted.

    `a.jpg` belongs to `a.png` or to `a_mask.png`, with any picture's ending in any case.

    Args:
        split: "train", "valid" or "test".
        skip_bad: leave out photographs that have no mask or several.

    Raises:
        UserError: folders are missing or empty, masks are missing or ambiguous.
    """
    root = Path(root)
    _check_root(root)
    if is_cvat(root):
        return _cvat_pairs(root, split, skip_bad)
    folders = root / f"{split}_images", root / f"{split}_masks"
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{printable(root)} has no folder {folder.name}; it needs train_images, "
                "train_masks, valid_images and valid_masks, or a CVAT export."
            )
    images, masks = (list_images(folder) for folder in folders)
    if not images:
        raise UserError(f"{printable(folders[0])} holds no pictures; put the photographs there.")
    return _match(images, masks, folders[1], skip_bad)


def _check_root(root: Path) -> None:
    if root.is_file():
        raise UserError(f"{printable(root)} is a file; unpack it and give the folder with --data.")
    if not root.is_dir():
        raise UserError(
            f"{printable(root)} is not a folder; give the folder of your data with --data."
        )


def _match(images: list[Path], masks: list[Path], folder: Path, skip_bad: bool) -> list[Pair]:
    """Find the one mask of each photograph."""
    stems = Counter(_key(path.stem) for path in images)
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        key = _key(mask.stem)
        if key not in stems and key.endswith("_mask"):
            key = key.removesuffix("_mask")
        by_stem.setdefault(key, []).append(mask)
    pairs, missing = [], []
    for image in images:
        key = _key(image.stem)
        found = by_stem.get(key, [])
        if len(found) == 1 and stems[key] == 1:
            pairs.append(Pair(image, found[0], image.stem))
        elif not found:
            missing.append(image)
        elif not skip_bad:
            several = found if len(found) > 1 else [i for i in images if _key(i.stem) == key]
            raise UserError(
                f"{printable(several[0])} and {printable(several[1].name)} share the name of "
                f"{printable(image.stem)}; keep one of them, or rename one with its partner."
            )
    if missing and (not skip_bad or not pairs):
        expected = folder / f"{missing[0].stem}.png"
        raise UserError(
            f"{len(missing)} of {len(images)} images have no mask; the first is "
            f"{printable(missing[0])} (expected {printable(expected)})."
        )
    return pairs


def _key(stem: str) -> str:
    """A stem for comparing: macOS and Linux write the same accents in different characters."""
    return unicodedata.normalize("NFC", stem)


def is_cvat(root: Path) -> bool:
    """Whether a folder is a CVAT export of the format "Segmentation mask 1.1"."""
    return (Path(root) / "SegmentationClass").is_dir()


def _cvat_pairs(root: Path, split: str, skip_bad: bool) -> list[Pair]:
    """Pairs of a CVAT export: a list of names, a folder of masks, a folder of photographs.

    Raises:
        UserError: the export has no such split, no photographs, or lacks a mask.
    """
    names = _cvat_names(root, split)
    masks, photos = root / "SegmentationClass", root / "JPEGImages"
    if not photos.is_dir():
        raise UserError(
            f"{printable(root)} has no photographs: put them into {printable(photos)}, or export "
            "again from CVAT with 'Save images'."
        )
    wanted = {_key(name) for name in names}
    images = [path for path in list_images(photos, recursive=True)
              if _key(path.relative_to(photos).with_suffix("").as_posix()) in wanted]  # fmt: skip
    if not images:
        raise UserError(
            f"{printable(photos)} holds none of the {len(names)} photographs of the split {split}, "
            f"such as {printable(names[0])}.jpg; put them there."
        )
    pairs, folders = [], sorted({image.parent.relative_to(photos) for image in images})
    for folder in folders:
        inside = [image for image in images if image.parent.relative_to(photos) == folder]
        there = list_images(masks / folder) if (masks / folder).is_dir() else []
        pairs += _match(inside, there, masks / folder, skip_bad)
    return pairs


def _cvat_names(root: Path, split: str) -> list[str]:
    """The names of a split: from its own list, or a share of the one list there is.

    Without a list for validation, 15 % of the names are set aside for it, chosen by their
    checksums: the same ones on every machine.
    """
    lists = {path.stem.lower(): path for path in _cvat_lists(root)}
    own = [lists[name] for name in CVAT_LISTS[split] if name in lists]
    if split == "test" and not own:
        raise UserError(f"{printable(root)} has no test split (ImageSets/Segmentation/test.txt).")
    has_valid = any(name in lists for name in CVAT_LISTS["valid"])
    if own and (has_valid or split == "test"):
        return _read_names(own[0])
    rest = [lists[name] for name in sorted(lists) if name not in ("test", *CVAT_LISTS["valid"])]
    names = sorted({name for path in rest for name in _read_names(path)}, key=_checksum)
    if has_valid:
        return sorted(names)
    count = max(1, round(CVAT_VALID_SHARE * len(names)))
    chosen = sorted(names[:count] if split == "valid" else names[count:])
    if not chosen:
        raise UserError(f"{printable(root)} holds {len(names)} pictures; 2 are needed at least.")
    return chosen


def _cvat_lists(root: Path) -> list[Path]:
    return sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))


def _read_names(path: Path) -> list[str]:
    """The names in a list, one a line; they say which pictures, never where on the disk."""
    names = [line.strip() for line in _decode_text(path).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{printable(path)} names no pictures; export again from CVAT.")
    return names


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


def data_fingerprint(root: Path, splits: Iterable[list[Pair]]) -> str:
    """Hex digest of the names and sizes of all files: whether a run resumes on the same data."""
    root, digest = Path(root), hashlib.sha256()
    for number, pairs in enumerate(splits):
        for pair in pairs:
            for path in (pair.image, pair.mask):
                digest.update(f"{number} {path.relative_to(root)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


# The class table


def read_class_table(root: Path) -> ClassTable:
    """The classes of `labelmap.txt` (lines `name:r,g,b::`), or else those of `config.py`.

    A line called void, ignore or unlabelled is no class: its pixels count nowhere.

    Raises:
        UserError: a line that cannot be read, a name or a colour used twice, fewer than two
            classes or more than 254.
    """
    path = Path(root) / "labelmap.txt"
    if not path.exists():
        tables = config.ALL_CLASSES, config.LABEL_COLORS_LIST, config.VIS_LABEL_MAP
        if len({len(table) for table in tables}) > 1:
            raise UserError("config.py: the three tables of classes differ in length.")
        return ClassTable.default()
    names, colors, ignored = [], [], []
    for number, text in enumerate(_decode_text(path).splitlines(), start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        name, color = _parse_line(text, f"{printable(path)} line {number}")
        if name in names:
            raise UserError(f"{printable(path)} has the name {name!r} twice; rename one.")
        if color in colors or color in [other for _, other in ignored]:
            raise UserError(f"{printable(path)} has the colour {color} twice; change one.")
        if name.casefold() in IGNORED_NAMES:
            ignored.append((len(names) + len(ignored), color))
        else:
            names.append(name)
            colors.append(color)
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{printable(path)} names {len(names)} classes; 2 to {MAX_CLASSES} are needed, the "
            "background included."
        )
    return ClassTable(tuple(names), tuple(colors), _visible(colors), tuple(ignored))


def _decode_text(path: Path) -> str:
    """The text of a small file in UTF-8, with or without a mark, or in Latin-1, which takes all."""
    try:
        if path.stat().st_size > 1 << 24:
            raise UserError(f"{printable(path)} is far too large for a list; replace it.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read ({error.strerror}).") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _parse_line(text: str, where: str) -> tuple[str, RGB]:
    """One line `name:r,g,b::` of a class table."""
    name, _, rest = text.strip().partition(":")
    name, numbers = name.strip(), rest.partition(":")[0].split(",")
    try:
        color = tuple(int(number) for number in numbers)
    except ValueError:
        color = ()
    if not name or len(color) != 3 or not all(0 <= value <= 255 for value in color):
        raise UserError(
            f"{where} is {printable(text.strip()[:60])!r}; write name:red,green,blue:: with "
            "numbers from 0 to 255."
        )
    if printable(name) != name:
        raise UserError(f"{where} has control characters in {printable(name)!r}; remove them.")
    return name, color


def _visible(colors: list[RGB]) -> tuple[RGB, ...]:
    """Colours for overlays: the table's own, but only the first class may be black."""
    spare = [color for color in SPARE_COLORS if color not in colors]
    return tuple(color if any(color) or i == 0 else spare[0] for i, color in enumerate(colors))


# Masks


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
    remarks: tuple[str, ...] = field(default=())

    @classmethod
    def for_data(cls, root: Path) -> "MaskReader":
        """Decide how the masks of a data set are read, over all splits that exist.

        Files that cannot be read take no part; `check_pairs` finds them.

        Raises:
            UserError: no such folder, no masks, a bad class table, or no way to read the masks.
        """
        root = Path(root)
        _check_root(root)
        classes = read_class_table(root)
        masks = mask_files(root)
        if not masks:
            raise UserError(
                f"{printable(root)} holds no masks; it needs train_images, train_masks, "
                "valid_images and valid_masks, or a CVAT export."
            )
        taken = map_files(take_census, masks, "Reading masks")
        found = [census for census in taken if isinstance(census, Census)]
        if not found:
            raise next(error for error in taken if isinstance(error, UserError))
        return cls.decide(classes, found, _cvat_remark(root))

    @classmethod
    def decide(cls, classes: ClassTable, found: list[Census], remarks: tuple = ()) -> "MaskReader":
        """Choose the reading under which all masks make sense; where none does, most of them.

        A mask that does not fit is then refused by name when it is read.
        """
        lines = _lines(classes)
        known = np.array([_pack(np.array(color)) for color in lines.values()])
        palettes = [c for c in found if c.palette is not None]
        # Index 255 of a palette is the border of Pascal VOC, whatever its colour.
        palette = "colours" if all(
            np.isin(c.palette[c.values != 255], known).all() for c in palettes
        ) else "indices"  # fmt: skip
        levels = [c for c in found if not c.lossy and (c.palette is None or palette == "indices")]
        grey = _decide_grey(classes, levels)
        jpegs = [c for c in found if c.lossy and c.grey]
        jpeg, threshold = "colours", 128
        if jpegs and len(classes) == 2 and not all(len(set(rgb)) == 1 for rgb in classes.colors):
            jpeg, threshold = "binary", _half_of_brightest(jpegs)
        if any(c.lossy for c in found):
            remarks = (*remarks, "JPEG masks are read by the nearest level")
        white = any(
            not c.lossy and ((c.values == 255) if c.grey else (c.values == 0xFFFFFF)).any()
            for c in levels
        )
        if white and grey != "binary" and (255, 255, 255) not in lines.values():
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

    def read(self, pair: Pair, size: tuple[int, int] | None = None) -> np.ndarray:
        """The classes of a pair's mask, (H, W) uint8, 255 = ignore, turned as the photograph is.

        Args:
            size: (height, width) to resize to, by nearest neighbour; None keeps the mask's own.

        Raises:
            UserError: the mask cannot be read, has unknown values, or does not fit its photograph.
        """
        raw = read_mask_raw(pair.mask)
        labels = self.decode(raw, pair.mask)
        header = read_header(pair.image)
        if labels.shape == header.stored_size != header.size:
            # Painted over the photograph as stored, by a program that does not know EXIF.
            labels = turn(labels, header.orientation)
        (height, width), (h, w) = header.size, labels.shape
        if abs(h * width - w * height) > max(0.01 * w * height, width, height):
            raise UserError(
                f"{printable(pair.mask)} has {w}x{h} px, its image {printable(pair.image.name)} "
                f"{width}x{height}; give the mask the image's size."
            )
        return labels if size is None else resize_mask(labels, size)

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
        lines = _lines(self.classes)
        values = raw.values if raw.values.ndim == 3 else np.repeat(raw.values[..., None], 3, axis=2)
        packed, inverse = np.unique(_pack(values), return_inverse=True)
        colors = np.stack([packed & 255, packed >> 8 & 255, packed >> 16], axis=1).astype(np.int32)
        distances = np.stack([np.abs(colors - np.array(rgb)).max(1) for rgb in lines.values()], 1)
        far = distances.min(1) > JPEG_TOLERANCE
        counts = np.bincount(inverse.ravel(), minlength=len(packed))
        if counts[far].sum() > JPEG_FAR_SHARE * counts.sum():
            worst = np.flatnonzero(far)[counts[far].argmax()]
            raise UserError(
                f"{printable(path)} is a JPEG mask with colours far from every class, such as "
                f"{tuple(colors[worst].tolist())}; save it as PNG, or correct labelmap.txt."
            )
        targets = np.array([self._target(line) for line in lines], np.uint8)
        return targets[distances.argmin(1)][inverse].reshape(values.shape[:2])

    def _target(self, line: int) -> int:
        """The class index of a line of the table, 255 for one that is no class."""
        ignored = [number for number, _ in self.classes.ignored]
        return IGNORE_INDEX if line in ignored else line - sum(n < line for n in ignored)

    @cached_property
    def _color_table(self) -> np.ndarray:
        """Class index of every packed colour, (2**24,) uint8: one look-up a pixel."""
        table = np.full(1 << 24, UNKNOWN, np.uint8)
        table[0xFFFFFF] = IGNORE_INDEX
        for line, color in _lines(self.classes).items():
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
        lines = _lines(self.classes)
        if (255, 255, 255) not in lines.values():
            table[255] = IGNORE_INDEX
        for line, color in lines.items():
            if self.grey == "indices":
                table[line] = self._target(line)
            elif len(set(color)) == 1:
                table[color[0]] = self._target(line)
        return table

    def _explain_unknown(self, raw: RawMask, labels: np.ndarray, path: Path) -> str:
        """The most frequent value that means nothing, and what it may have been meant to be."""
        values = raw.values[labels == UNKNOWN]
        remedy = "Fix the mask or add the class to labelmap.txt."
        if raw.palette is not None and self.palette == "colours":
            values = raw.palette[values]
        if values.ndim == 1 and self.grey == "indices":
            level, count = Counter(values.tolist()).most_common(1)[0]
            last = len(_lines(self.classes)) - 1
            return (
                f"{printable(path)} has the value {level:g} on {count} pixels; the class table has "
                f"the lines 0 to {last}. {remedy}"
            )
        if values.ndim == 1:
            values = np.repeat(values[:, None], 3, axis=1)
        color, count = Counter(map(tuple, values.tolist())).most_common(1)[0]
        lines = _lines(self.classes)
        near = min(lines, key=lambda line: sum((a - b) ** 2 for a, b in zip(color, lines[line])))  # noqa: B905
        target = self._target(near)
        name = "ignored" if target == IGNORE_INDEX else self.classes.names[target]
        return (
            f"{printable(path)} has the colour {color} on {count} pixels; the nearest class is "
            f"{name!r} {lines[near]}. {remedy}"
        )


def _lines(classes: ClassTable) -> dict[int, RGB]:
    """The colour of every line of the table, of classes and of what is ignored, by its number."""
    ignored, rest = dict(classes.ignored), iter(classes.colors)
    return {
        line: ignored[line] if line in ignored else next(rest)
        for line in range(len(classes) + len(ignored))
    }


def _decide_grey(classes: ClassTable, found: list[Census]) -> str:
    """What grey levels mean: see the rules in the README, "Your own data"."""
    lines = _lines(classes)
    table_greys = [color[0] for color in lines.values() if len(set(color)) == 1]
    white = [] if (255, 255, 255) in lines.values() else [255]
    indices = [*lines, *white]
    levels = set().union(*(c.values.tolist() for c in found if c.grey))
    if any(not c.grey for c in found) or levels <= set(table_greys):
        return "colours"
    # 0 and 255 alone would be a data set of nothing but background: it is black and white.
    if levels <= set(indices) and not (len(classes) == 2 and levels <= {0, 255}):
        return "indices"
    if len(classes) == 2:
        return "binary"
    fits = {
        kind: sum(bool(np.isin(c.values, allowed).all()) for c in found)
        for kind, allowed in (("indices", indices), ("colours", table_greys + white))
    }
    return max(fits, key=fits.get)


def _half_of_brightest(found: list[Census]) -> int:
    """Half of the most frequent level that is not dark, which is where two flat levels part."""
    counts: Counter = Counter()
    for census in found:
        for value, count in zip(census.values.tolist(), census.counts.tolist(), strict=True):
            counts[value] += count
    bright = {value: count for value, count in counts.items() if value > 20}
    return max(bright, key=bright.get) // 2 if bright else 128


def _cvat_remark(root: Path) -> tuple[str, ...]:
    """Says so where the validation split is chosen by us."""
    lists = {path.stem.lower() for path in _cvat_lists(root)} if is_cvat(root) else {"val"}
    if lists & set(CVAT_LISTS["valid"]):
        return ()
    return (f"{CVAT_VALID_SHARE:.0%} of the pictures, chosen by name, are for validation",)


def mask_files(root: Path) -> list[Path]:
    """All masks of a data set, of the splits that exist."""
    if is_cvat(root):
        return list_images(Path(root) / "SegmentationClass", recursive=True)
    folders = [Path(root) / f"{split}_masks" for split in SPLITS]
    return [path for folder in folders if folder.is_dir() for path in list_images(folder)]


def take_census(path: Path) -> Census | UserError:
    """What occurs in a mask, or why that cannot be said."""
    try:
        return Census.of(read_mask_raw(path))
    except UserError as error:
        return error


def map_files(work: Callable, items: list, title: str) -> list:
    """Do `work` on each item in threads (decoders leave the interpreter free), in order.

    A bar shows from two seconds on.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(tqdm(pool.map(work, items), title, len(items), delay=2, dynamic_ncols=True))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, nobody waits for the rest
